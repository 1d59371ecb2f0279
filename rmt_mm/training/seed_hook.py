"""Make the random numbers of a training depend on its seed and how far it is, not on what this process drew before."""

import functools
from typing import Any, Iterator

import numpy as np
from mmengine.dataset import worker_init_fn
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, set_random_seed


@HOOKS.register_module()
class SeedHook(Hook):
    """Seed Python, NumPy and torch for each epoch, or each batch of a loop that counts iterations.

    A training that is resumed then draws what it would have drawn without a pause. The states themselves need not be
    saved: a validation, whose numbers a resumed training does not draw again, would change them.

    - Loops that count epochs: worker processes are seeded for each epoch too. mmengine gives those that start anew in
      each epoch the same seed. Persistent workers cannot be seeded: with ``restart`` they are started anew.
    - Loops that count iterations: mmengine repeats the loading of all earlier batches when it resumes, so that the
      workers, which it starts once, draw the same.

    Args:
        restart (bool): start persistent workers of the training's loader anew in each epoch. Default True.
    """

    def __init__(self, restart: bool = True) -> None:
        self.restart = restart

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = SeededBatches(runner, loop.dataloader_iterator)

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        seed = _seed(runner, runner.epoch)
        loader = loop.dataloader
        init = loader.worker_init_fn
        if isinstance(init, functools.partial) and init.func is worker_init_fn:
            loader.worker_init_fn = functools.partial(worker_init_fn, **{**init.keywords, 'seed': seed})
            if self.restart and loader.persistent_workers:
                loader._iterator = None  # as mmdet does to restart them; torch has no public name for it


class SeededBatches:
    """Batches, each loaded and trained on with random numbers of its own."""

    def __init__(self, runner: Runner, batches: Iterator) -> None:
        self._runner, self._batches, self._number = runner, batches, 0

    def __next__(self) -> Any:
        _seed(self._runner, self._number)
        self._number += 1
        return next(self._batches)

    def skip_iter(self, count: int) -> None:
        """Load batches and drop them, as a loop of onedl-mmengine asks for when it resumes."""
        for _ in range(count):
            next(self)


def _seed(runner: Runner, step: int) -> int:
    """Seed this process by the training's seed and ``step``; return the seed."""
    # Seeds of neighbouring steps must not be those of neighbouring ranks and workers, to which numbers are added.
    seed = int(np.random.SeedSequence([runner.seed, step]).generate_state(1)[0]) % 2**31
    return set_random_seed(seed)  # runner.seed differs between ranks where the config wants it (diff_rank_seed)
