"""Functions that the command-line tools share. The library does not import this package."""

from ...checkpoints import force_safe_loading
from ...checkpoints.loading import check_checkpoint_file
from ...errors import FOREIGN_ERRORS, UsageError, as_sentence
from .config import find_config, load_config, read_config
from .data_files import check_annotations, check_datasets
from .loop_settings import check_training_settings
from .model_check import check_backbones
from .options import (
    add_common_arguments,
    check_drawing,
    draw_predictions,
    exit_on_error,
    program,
    use_amp,
    use_auto_scale_lr,
    use_tta,
    use_vis_backend,
)
from .runner import build_runner, keep_config, process_group, record_config
from .saving import check_saving
from .types import library
from .weights import check_file, check_init_cfgs, choose_checkpoint, watch_loading

__all__ = [
    'FOREIGN_ERRORS',
    'UsageError',
    'add_common_arguments',
    'as_sentence',
    'build_runner',
    'check_annotations',
    'check_backbones',
    'check_checkpoint_file',
    'check_datasets',
    'check_drawing',
    'check_file',
    'check_init_cfgs',
    'check_saving',
    'check_training_settings',
    'choose_checkpoint',
    'draw_predictions',
    'exit_on_error',
    'find_config',
    'force_safe_loading',
    'keep_config',
    'library',
    'load_config',
    'process_group',
    'program',
    'read_config',
    'record_config',
    'use_amp',
    'use_auto_scale_lr',
    'use_tta',
    'use_vis_backend',
    'watch_loading',
]
