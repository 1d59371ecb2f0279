"""Image folders with a label map for every image."""

import os
import os.path as osp
from typing import List, Set

from mmpretrain.datasets import BaseDataset, CustomDataset, ImageNet
from mmpretrain.registry import DATASETS

from ..errors import TokenLabelError
from .label_map import EXTENSIONS

_HOW = 'how label maps are made is said under "Token labels" in the documentation'


def _list_files(root: str) -> Set[str]:
    """Return the files below ``root``, linked folders included, as mmpretrain's CustomDataset lists images."""
    found: Set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        found.update(osp.join(folder, name) for name in names)
        # Skip links to a parent folder: following them would never end.
        here = osp.join(osp.realpath(folder), '')
        subfolders[:] = [
            name for name in subfolders if not here.startswith(osp.join(osp.realpath(osp.join(folder, name)), ''))
        ]
    return found


class _WithLabelMaps(BaseDataset):
    """Add ``label_map_path`` to the samples of mmpretrain's datasets; see :class:`TokenLabelDataset`."""

    def load_data_list(self) -> List[dict]:
        data_list = super().load_data_list()
        root = self.data_prefix.get('label_map_path')
        if not root:
            raise TokenLabelError(
                f'{type(self).__name__} needs the folder of label maps: '
                "data_prefix=dict(img_path='train', label_map_path='token_labels/train')."
            )
        if not osp.isdir(root):
            raise TokenLabelError(f'The folder of label maps {root} does not exist; {_HOW}.')
        found, missing = _list_files(root), []
        for info in data_list:
            image = osp.relpath(info['img_path'], self.img_prefix)
            paths = [osp.join(root, osp.splitext(image)[0] + extension) for extension in EXTENSIONS]
            info['label_map_path'] = next((path for path in paths if path in found), None)
            if info['label_map_path'] is None:
                missing.append(image)
        if missing:
            raise TokenLabelError(
                f'{root} has no label map ({" or ".join(EXTENSIONS)}) for {len(missing)} of {len(data_list)} images, '
                f'such as {", ".join(missing[:3])}; {_HOW}.'
            )
        return data_list


@DATASETS.register_module()
class TokenLabelDataset(_WithLabelMaps, CustomDataset):
    """mmpretrain's CustomDataset with a label map for every image.

    ``data_prefix`` names two folders of the same structure, such as
    ``dict(img_path='train', label_map_path='token_labels/train')``, relative to ``data_root``: the image
    ``train/cat/1.jpg`` has the label map ``token_labels/train/cat/1.pt`` or ``.npz``. Takes the arguments of
    :class:`mmpretrain.datasets.CustomDataset`.

    Raises:
        TokenLabelError: images have no label map (the message gives their number and the first names), or
            ``data_prefix`` has no ``label_map_path``.
    """


@DATASETS.register_module()
class TokenLabelImageNet(_WithLabelMaps, ImageNet):
    """mmpretrain's ImageNet with a label map for every image; see :class:`TokenLabelDataset`."""
