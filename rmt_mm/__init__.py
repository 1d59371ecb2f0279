"""RMT (Retentive Networks Meet Vision Transformers, CVPR 2024) for mmdetection, mmsegmentation and mmpretrain."""

from .compat import allow_own_checkpoints, check_stack
from .version import __version__  # before anything fails: rmt_doctor reads it

check_stack()  # before mmcv is imported, so that an unusable stack raises an error of one sentence
allow_own_checkpoints()

from .backbone import RMT
from .checkpoints import convert_official_state_dict
from .config_path import get_config_path, list_configs
from .training import DataCheckHook, LayerDecayOptimWrapperConstructor

__all__ = [
    'DataCheckHook',
    'LayerDecayOptimWrapperConstructor',
    'RMT',
    '__version__',
    'convert_official_state_dict',
    'get_config_path',
    'list_configs',
]
