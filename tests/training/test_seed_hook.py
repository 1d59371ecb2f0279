"""Random numbers of a batch depend on the seed of the training and the number of the batch alone."""

from types import SimpleNamespace

import torch

from rmt_mm.training.seed_hook import SeededBatches


def draw(seed=3):
    return SeededBatches(SimpleNamespace(seed=seed), iter(lambda: torch.rand(1).item(), None))


def test_batches_are_drawn_alike_after_others():
    batches = draw()
    drawn = [next(batches) for _ in range(3)]
    assert len(set(drawn)) == 3
    torch.rand(5)
    resumed = draw()
    resumed.skip_iter(2)
    assert next(resumed) == drawn[2]


def test_another_seed_draws_other_numbers():
    assert next(draw(3)) != next(draw(4))
