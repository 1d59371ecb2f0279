"""Parity with the original: an output of its RMT-T with deterministic weights, and the function that computes them.

Every weight depends only on its name in the official layout and on its shape (integer hashing in NumPy), so that
outputs can be compared without storing a checkpoint.
"""

import zlib
from pathlib import Path
from typing import Tuple

import numpy as np

# The last output of the original's RMT-T, (1, 512, 2, 3), for image('vis-a', (1, 3, 64, 96)).
OUTPUTS = Path(__file__).with_name('golden_tiny.npz')


def uniform(name: str, shape: Tuple[int, ...]) -> np.ndarray:
    """Return float32 values in [-1, 1) that depend only on ``name`` and ``shape``."""
    with np.errstate(over='ignore'):
        x: np.ndarray = np.arange(int(np.prod(shape)), dtype=np.uint64)
        x = x * np.uint64(0x9E3779B97F4A7C15) + np.uint64(zlib.crc32(name.encode()))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    unit = (x >> np.uint64(40)).astype(np.float64) / 2.0**24
    return (2.0 * unit - 1.0).astype(np.float32).reshape(shape)


def tensor(name: str, shape: Tuple[int, ...]) -> np.ndarray:
    """Return the value of checkpoint entry ``name``.

    Do not use it for the buffers ``angle``, ``decay`` and ``num_batches_tracked``: keep the model's own values.
    """
    u = uniform(name, shape)
    if name.endswith('running_var'):
        return 1.0 + 0.5 * u
    if name.endswith(('running_mean', 'bias')):
        return 0.1 * u
    if name.endswith(('gamma_1', 'gamma_2')):  # LayerScale, far from zero so that it matters
        return 0.5 + 0.2 * u
    if len(shape) == 1:  # affine weight of a LayerNorm or BatchNorm
        return 1.0 + 0.2 * u
    fan_in = int(np.prod(shape[1:]))
    return (u * np.sqrt(3.0 / fan_in)).astype(np.float32)


def image(name: str, shape: Tuple[int, ...]) -> np.ndarray:
    """Return a normalised test image (N, 3, H, W), float32, about unit variance."""
    return uniform(name, shape) * np.float32(1.7)


def parity_error(device: str = 'cpu') -> float:
    """Return how far RMT-T is from the original: norm of the difference / norm of the original's output.

    The weights are made in the official layout and converted. In fp32 the result is below 1e-5.

    Args:
        device (str): device to run the model on. Default ``'cpu'``.
    """
    import torch

    from ..backbone import RMT
    from ..checkpoints import convert_official_state_dict
    from ..checkpoints.official_names import revert_to_official_state_dict

    model = RMT('tiny').eval()
    state_dict = {
        name: torch.from_numpy(tensor(name, tuple(old.shape)))
        for name, old in revert_to_official_state_dict(model.state_dict()).items()
        if not name.endswith('num_batches_tracked')
    }
    model.load_state_dict(
        convert_official_state_dict(state_dict), strict=False
    )  # a missing tensor would change the result
    with torch.no_grad():
        out = model.to(device)(torch.from_numpy(image('vis-a', (1, 3, 64, 96))).to(device))[-1].cpu()
    expected = torch.from_numpy(np.load(OUTPUTS)['out3'])
    return float((out - expected).norm() / expected.norm())
