"""RMT (Retentive Networks Meet Vision Transformers, CVPR 2024) for mmdetection, mmsegmentation and mmpretrain."""

from .compat import allow_own_checkpoints, check_stack

check_stack()  # before mmcv is imported: a stack that cannot work gets a sentence, not a traceback
allow_own_checkpoints()

from .backbone import RMT  # noqa: E402
from .checkpoints import convert_official_state_dict  # noqa: E402
from .config_path import get_config_path, list_configs  # noqa: E402
from .training import DataCheckHook, LayerDecayOptimWrapperConstructor  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = [
    'DataCheckHook',
    'LayerDecayOptimWrapperConstructor',
    'RMT',
    '__version__',
    'convert_official_state_dict',
    'get_config_path',
    'list_configs',
]
