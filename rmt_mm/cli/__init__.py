"""What the command-line tools share. The library does not import this package."""
from ..checkpoints.loading import check_checkpoint_file
from ..errors import UsageError
from .config import find_config, load_config, read_config
from .data_files import check_annotations, check_datasets
from .model_check import check_backbones
from .options import add_common_arguments, draw_predictions, one_sentence, use_amp, use_auto_scale_lr, use_tta
from .runner import BUILD_ERRORS, build_runner, latest_checkpoint
from .types import library

__all__ = [
    'BUILD_ERRORS', 'UsageError', 'add_common_arguments', 'build_runner', 'check_annotations', 'check_backbones',
    'check_checkpoint_file', 'check_datasets', 'draw_predictions', 'find_config', 'latest_checkpoint', 'library',
    'load_config', 'one_sentence', 'read_config', 'use_amp', 'use_auto_scale_lr', 'use_tta'
]
