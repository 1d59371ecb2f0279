"""Convert whole checkpoints, heads included, between the authors' layout and ours."""

from .official_model import TASKS, WEIGHTS, OfficialModel, parse_checkpoint

__all__ = ['TASKS', 'WEIGHTS', 'OfficialModel', 'parse_checkpoint']
