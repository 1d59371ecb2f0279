"""Label maps: the dense scores of an annotator network for an image, kept for its best classes only.

A file holds one array (2, k, h, w), usually fp16: scores in [0], class indices in [1], of the k best classes of every
cell of an h x w grid over the *whole* image. k = 5 and h = w = 18 in the maps of the published runs. Scores are logits:
classes left out count as 0, and a softmax over all classes follows.
"""
import os
import os.path as osp
import pickle
import tempfile
import zipfile

import numpy as np
import torch
from torch import Tensor

from ..errors import TokenLabelError

EXTENSIONS = ('.pt', '.npz')
NPZ_KEY = 'label_map'


def load_label_map(path: str, num_classes: int, img_path: str = '') -> Tensor:
    """Load and check a label map.

    Args:
        path (str): a ``.pt`` file that holds the tensor, or a ``.npz`` file that holds it alone or as ``label_map``.
        num_classes (int): class indices must be below it.
        img_path (str): the image that the map belongs to, for error messages. Default ``''``.

    Returns:
        Tensor: fp32, (2, k, h, w).

    Raises:
        TokenLabelError: there is no such file, it is truncated or no label map, or has class indices beyond
            ``num_classes``.
    """
    of_image = f' of image {img_path}' if img_path else ''
    try:
        if path.endswith('.npz'):
            with np.load(path) as arrays:
                label_map = torch.from_numpy(arrays[NPZ_KEY if NPZ_KEY in arrays.files else arrays.files[0]])
        else:
            label_map = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError as error:
        raise TokenLabelError(f'Label map {path}{of_image} does not exist.') from error
    # What torch.load, NumPy and their zip readers raise for a file that is cut off or something else.
    except (RuntimeError, EOFError, ValueError, IndexError, KeyError, pickle.UnpicklingError,
            zipfile.BadZipFile) as error:
        raise TokenLabelError(f'Label map {path}{of_image} cannot be read, it is truncated or no label map '
                              f'({str(error).splitlines()[0] if str(error) else type(error).__name__}).') from error
    if not isinstance(label_map, Tensor) or label_map.dim() != 4 or label_map.shape[0] != 2 or not label_map.numel():
        found = tuple(label_map.shape) if isinstance(label_map, Tensor) else type(label_map).__name__
        raise TokenLabelError(f'Label map {path}{of_image} must be an array (2, k, h, w) of scores and class indices, '
                              f'and is {found}.')
    label_map = label_map.float()
    if not label_map.isfinite().all():
        raise TokenLabelError(f'Label map {path}{of_image} has scores or class indices that are not finite.')
    indices = label_map[1]
    if indices.min() < 0 or indices.max() >= num_classes or (indices != indices.round()).any():
        raise TokenLabelError(f'Label map {path}{of_image} has class indices from {indices.min():g} to '
                              f'{indices.max():g}; they must be integers from 0 to num_classes - 1 = '
                              f'{num_classes - 1}.')
    return label_map


def save_label_map(label_map: Tensor, path: str) -> None:
    """Save a label map as fp16, with folders as needed, so that ``path`` is never there incomplete.

    Args:
        label_map (Tensor): (2, k, h, w).
        path (str): where to, ending in ``.pt`` or ``.npz``.

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
                np.savez(file, **{NPZ_KEY: label_map.numpy()})
            else:
                torch.save(label_map, file)
            file.close()
            os.replace(file.name, path)
        finally:
            if osp.exists(file.name):  # something went wrong: leave no part behind
                os.unlink(file.name)


def keep_best(logits: Tensor, k: int = 5) -> Tensor:
    """Reduce dense logits to a label map without changing the probabilities of the best classes.

    The scores are shifted so that k scores with zeros for the other classes have the softmax of all the logits, as far
    as the k best are concerned.

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
        rest = scores[k:].logsumexp(0) - np.log(num_classes - k)  # what each of the others would have on average
        scores = scores - rest
    return torch.stack((scores[:k], indices[:k].float()))
