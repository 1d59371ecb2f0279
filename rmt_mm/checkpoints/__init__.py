"""Read and write checkpoint files safely, convert the authors' layout, and load checkpoints into a backbone."""

from .files import read_checkpoint, write_checkpoint
from .loading import is_pretrained, load_pretrained, require_whole_backbone
from .official_names import convert_official_state_dict
from .safe import allow_mmengine_checkpoints, force_safe_loading
from .shapes import BackboneSpec, tensor_shapes

__all__ = [
    'BackboneSpec',
    'allow_mmengine_checkpoints',
    'convert_official_state_dict',
    'force_safe_loading',
    'is_pretrained',
    'load_pretrained',
    'read_checkpoint',
    'require_whole_backbone',
    'tensor_shapes',
    'write_checkpoint',
]
