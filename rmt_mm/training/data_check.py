"""A look at the data before the first iteration, for mistakes that would train nothing or crash in a loss."""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import DataError


def build_data(runner: Runner, *splits: str) -> None:
    """Build the data sets of a runner now, rather than at the start of its loop.

    Args:
        runner (Runner): the runner.
        splits (str): from 'train', 'val' and 'test'.

    Raises:
        DataError: a data set is empty, of which mmengine's own error says nothing.
    """
    for split in splits:
        try:
            getattr(runner, f'{split}_loop')
        except ValueError as error:
            # what NumPy says when mmengine packs the samples of a data set into one array, and there are none
            if 'need at least one array' in str(error):
                raise DataError(_empty(f'{split}_dataloader')) from error
            raise


def _empty(loader: str) -> str:
    return (f'{loader}: the data set is empty. No image is in its folder or annotation file, or filter_cfg leaves '
            'none, or its categories have other names than metainfo.classes; see docs/datasets.md.')


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Stop before training, validation or testing if the data set is empty, or its classes are not those of the heads.

    Works with mmdet, mmseg and mmpretrain: every module with ``num_classes``, region proposals aside, is compared with
    the ``classes`` in the data set's ``metainfo``.

    Raises:
        rmt_mm.errors.DataError: what disagrees, and the setting to change.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        self._check(runner, 'train_dataloader')

    def before_val(self, runner: Runner) -> None:
        self._check(runner, 'val_dataloader')

    def before_test(self, runner: Runner) -> None:
        self._check(runner, 'test_dataloader')

    def _check(self, runner: Runner, loader: str) -> None:
        dataset = getattr(runner, loader).dataset
        if len(dataset) == 0:
            raise DataError(_empty(loader))
        classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
        for name, module in runner.model.named_modules():
            given = getattr(module, 'num_classes', None)
            if classes and isinstance(given, int) and given != len(classes) and 'rpn' not in name:
                shown = ', '.join(map(str, classes[:5])) + (', ...' if len(classes) > 5 else '')
                raise DataError(f'model.{name.replace("module.", "", 1)}.num_classes is {given}, but the data set of '
                                 f'{loader} has {len(classes)} classes ({shown}): set the one in the model, or the '
                                 f'other by dataset.metainfo.classes in {loader}.')
