"""A look at the data before the first iteration, for mistakes that would train nothing or crash in a loss."""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .launch import UsageError


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Stop before training, validation or testing if the data set is empty, or its classes are not those of the heads.

    Works with mmdet, mmseg and mmpretrain: every module with ``num_classes``, region proposals aside, is compared with
    the ``classes`` in the data set's ``metainfo``.

    Raises:
        rmt_mm.launch.UsageError: what disagrees, and the setting to change.
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
        classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
        shown = ', '.join(map(str, classes[:5])) + (', ...' if len(classes) > 5 else '')
        if len(dataset) == 0:
            raise UsageError(f'{loader}: the data set is empty. Its annotations have no image that filter_cfg leaves'
                             + (f' with one of the {len(classes)} classes {shown}.' if classes else '.')
                             + ' docs/datasets.md says how other classes are set.')
        if not classes:
            return
        for name, module in runner.model.named_modules():
            given = getattr(module, 'num_classes', None)
            if isinstance(given, int) and given != len(classes) and 'rpn' not in name:
                raise UsageError(f'model.{name.replace("module.", "", 1)}.num_classes is {given}, but the data set of '
                                 f'{loader} has {len(classes)} classes ({shown}): set the one in the model, or the '
                                 f'other by dataset.metainfo.classes in {loader}.')
