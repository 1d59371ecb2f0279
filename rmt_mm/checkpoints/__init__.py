"""Read and write checkpoint files safely, convert the authors' layout, and load checkpoints into a backbone."""

from .files import force_safe_loading, read_checkpoint, write_checkpoint
from .loading import is_pretrained, load_pretrained, refuse_foreign
from .official_names import convert_official_state_dict

__all__ = [
    'convert_official_state_dict',
    'force_safe_loading',
    'is_pretrained',
    'load_pretrained',
    'read_checkpoint',
    'refuse_foreign',
    'write_checkpoint',
]
