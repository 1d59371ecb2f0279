"""An EMA of the weights whose decay depends on the batch size."""

from mmengine.dist import get_world_size
from mmengine.runner import Runner
from mmpretrain.engine.hooks import EMAHook
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class BatchScaledEMAHook(EMAHook):
    """mmpretrain's EMAHook with the decay ``decay ** (batch size / base_batch_size)``, as in the released code.

    The batch size is images per GPU times GPUs: mmengine averages after every iteration, even if gradients are
    accumulated.

    Args:
        decay (float): decay at ``base_batch_size``. Default 0.99996.
        base_batch_size (int): batch size at which the decay is ``decay``. Default 512.
        **kwargs: those of :class:`mmpretrain.engine.EMAHook`, without ``momentum``.
    """

    def __init__(self, decay: float = 0.99996, base_batch_size: int = 512, **kwargs) -> None:
        super().__init__(**kwargs)
        self.decay = decay
        self.base_batch_size = base_batch_size

    def momentum(self, batch_size: int) -> float:
        """Return mmengine's momentum, which is 1 - decay, at a batch size."""
        return 1 - self.decay ** (batch_size / self.base_batch_size)

    def before_run(self, runner: Runner) -> None:
        loader = runner.cfg.get('train_dataloader') or dict(batch_size=self.base_batch_size)  # none in a test
        self.ema_cfg['momentum'] = self.momentum(loader['batch_size'] * get_world_size())
        super().before_run(runner)
