"""Label maps: the dense scores of an annotator network for an image, kept for the best classes only.

A file holds one array (2, k, h, w), usually fp16: scores in [0], class indices in [1], of the k best classes of every
cell of an h x w grid over the *whole* image. k = 5 and h = w = 18 in the maps of the published runs. Scores are logits:
the other classes count as 0, and a softmax over all classes follows.
"""

import math
import os
import os.path as osp
import tempfile
import zipfile

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.safe import DAMAGE, safe_load
from ..errors import CheckpointError, TokenLabelError, printable

EXTENSIONS = ('.pt', '.npz')
NPZ_KEY = 'label_map'
# The largest label map that is read: scores and indices of 20,000 classes on a 20 x 20 grid. In fp32 it takes 64 MiB.
MAX_NUMBERS = 2**24


def load_label_map(path: str, num_classes: int, img_path: str = '') -> Tensor:
    """Load and check a label map.

    Args:
        path (str): a ``.pt`` file that holds the tensor, or a ``.npz`` file that holds it alone or as ``label_map``.
        num_classes (int): class indices must be below it.
        img_path (str): the image that the map belongs to, for error messages. Default ``''``.

    Returns:
        Tensor: fp32, (2, k, h, w).

    Raises:
        TokenLabelError: there is no such file, it is truncated, is not a label map, is larger than
            :data:`MAX_NUMBERS`, or has class indices of ``num_classes`` or above.
    """
    of_image = f' of image {img_path}' if img_path else ''
    try:
        label_map = _read_npz(path) if path.endswith('.npz') else safe_load(path)
    except FileNotFoundError as error:
        raise TokenLabelError(f'Label map {path}{of_image} does not exist.') from error
    except OSError as error:
        raise TokenLabelError(f'Label map {path}{of_image} cannot be read ({error.strerror or error}).') from error
    except DAMAGE as error:  # DAMAGE includes CheckpointError
        reason = printable(' '.join(str(error).split()).rstrip('.') or type(error).__name__, 400)
        raise TokenLabelError(
            f'Label map {path}{of_image} cannot be read, it is truncated or no label map ({reason}).'
        ) from error
    if not isinstance(label_map, Tensor) or label_map.dim() != 4 or label_map.shape[0] != 2 or not label_map.numel():
        found = tuple(label_map.shape) if isinstance(label_map, Tensor) else type(label_map).__name__
        raise TokenLabelError(
            f'Label map {path}{of_image} must be an array (2, k, h, w) of scores and class indices, and is {found}.'
        )
    if label_map.numel() > MAX_NUMBERS or label_map.is_complex():
        raise TokenLabelError(
            f'Label map {path}{of_image} is {label_map.dtype} of shape {tuple(label_map.shape)}; a '
            f'label map has real numbers, at most {MAX_NUMBERS} of them.'
        )
    label_map = label_map.float()
    if not label_map.isfinite().all():
        raise TokenLabelError(f'Label map {path}{of_image} has scores or class indices that are not finite.')
    indices = label_map[1]
    if indices.min() < 0 or indices.max() >= num_classes or (indices != indices.round()).any():
        raise TokenLabelError(
            f'Label map {path}{of_image} has class indices from {indices.min():g} to '
            f'{indices.max():g}; they must be integers from 0 to num_classes - 1 = '
            f'{num_classes - 1}.'
        )
    return label_map


def _read_npz(path: str) -> Tensor:
    """Read the array of a label map. Check its header before unpacking its data."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        name = f'{NPZ_KEY}.npy' if f'{NPZ_KEY}.npy' in names else names[0]
        with archive.open(name) as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[version](file)
            if dtype.kind not in 'biuf' or math.prod(shape) > MAX_NUMBERS or len(shape) != 4 or min(shape) < 0:
                raise CheckpointError(
                    f'its array is {dtype} of shape {shape}; a label map is (2, k, h, w) real '
                    f'numbers, at most {MAX_NUMBERS} of them.'
                )
        with archive.open(name) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    return torch.from_numpy(array.astype(np.float32))


def save_label_map(label_map: Tensor, path: str) -> None:
    """Save a label map as fp16, atomically: ``path`` never holds an incomplete file. Create folders as needed.

    Args:
        label_map (Tensor): (2, k, h, w).
        path (str): the file, ending in ``.pt`` or ``.npz``.

    Raises:
        TokenLabelError: class indices above 2048, where fp16 begins to skip integers.
    """
    if label_map[1].max() > 2048:
        raise TokenLabelError(f'Label maps are fp16 and hold class indices up to 2048, got {label_map[1].max():g}.')
    folder = osp.dirname(path) or '.'
    os.makedirs(folder, exist_ok=True)
    label_map = label_map.half().cpu().contiguous()
    with tempfile.NamedTemporaryFile(dir=folder, prefix='.', suffix='.part', delete=False) as file:
        try:
            if path.endswith('.npz'):
                np.savez(file, **{NPZ_KEY: label_map.numpy()})  # type: ignore[arg-type]  # a name is data's or allow_pickle's
            else:
                torch.save(label_map, file)
            file.close()
            os.replace(file.name, path)
        finally:
            if osp.exists(file.name):  # on an error, remove the incomplete file
                os.unlink(file.name)


def keep_best(logits: Tensor, k: int = 5) -> Tensor:
    """Reduce dense logits to a label map without changing the probabilities of the best classes.

    Shift the scores so that a softmax over the k best, with zeros for the other classes, gives the k best the same
    probabilities as the softmax over all logits.

    Args:
        logits (Tensor): (num_classes, h, w).
        k (int): classes to keep, at most num_classes. Default 5.

    Returns:
        Tensor: (2, k, h, w), the best class first.
    """
    num_classes = len(logits)
    k = min(k, num_classes)
    scores, indices = logits.float().topk(num_classes, dim=0)
    if k < num_classes:
        rest = scores[k:].logsumexp(0) - np.log(num_classes - k)  # log of the mean exp(logit) of the others
        scores = scores - rest
    return torch.stack((scores[:k], indices[:k].float()))
