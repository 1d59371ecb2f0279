"""The backbone: attention, its position tables, the layers around it, and their assembly."""
from .rmt import RMT

__all__ = ['RMT']
