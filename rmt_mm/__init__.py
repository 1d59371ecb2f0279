"""RMT (Retentive Networks Meet Vision Transformers, CVPR 2024) for mmdetection, mmsegmentation and mmpretrain."""

from .compat import check_stack
from .version import __version__  # before anything fails: rmt_doctor reads it

check_stack()  # before mmcv is imported, so that an unusable stack raises an error of one sentence

from .backbone import RMT, MaSA
from .checkpoints import allow_mmengine_checkpoints, convert_official_state_dict
from .config_path import get_config_path, list_configs
from .training import DataCheckHook, LayerDecayOptimWrapperConstructor

allow_mmengine_checkpoints()  # or the libraries' own tools could not resume

__all__ = [
    'DataCheckHook',
    'LayerDecayOptimWrapperConstructor',
    'MaSA',
    'RMT',
    '__version__',
    'convert_official_state_dict',
    'get_config_path',
    'list_configs',
]
