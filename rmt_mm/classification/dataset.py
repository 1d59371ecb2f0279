"""Image folders with a label map for every image."""
import os.path as osp
from typing import List

from mmengine.fileio import get_file_backend
from mmpretrain.datasets import CustomDataset, ImageNet
from mmpretrain.registry import DATASETS

from ..errors import TokenLabelError
from .label_map import EXTENSIONS

_HOW = 'how label maps are made is said under "Token labels" in the documentation'


class _WithLabelMaps:
    """Adds ``label_map_path`` to what mmpretrain's datasets load; see :class:`TokenLabelDataset`."""

    def load_data_list(self) -> List[dict]:
        data_list = super().load_data_list()
        root = self.data_prefix.get('label_map_path')
        if not root:
            raise TokenLabelError(f"{type(self).__name__} needs the folder of label maps: "
                                  "data_prefix=dict(img_path='train', label_map_path='token_labels/train').")
        backend = get_file_backend(root, enable_singleton=True)
        if not backend.isdir(root):
            raise TokenLabelError(f'The folder of label maps {root} does not exist; {_HOW}.')
        # mmengine's own listing, as mmpretrain lists the images: linked folders are entered in both trees
        found = set(backend.list_dir_or_file(root, list_dir=False, recursive=True))
        missing = []
        for info in data_list:
            image = osp.relpath(info['img_path'], self.img_prefix)
            names = [osp.splitext(image)[0] + extension for extension in EXTENSIONS]
            name = next((name for name in names if name in found), None)
            if name is None:
                missing.append(image)
            else:
                info['label_map_path'] = backend.join_path(root, name)
        if missing:
            raise TokenLabelError(
                f'{root} has no label map ({" or ".join(EXTENSIONS)}) for {len(missing)} of {len(data_list)} images, '
                f'such as {", ".join(missing[:3])}; {_HOW}.')
        return data_list


@DATASETS.register_module()
class TokenLabelDataset(_WithLabelMaps, CustomDataset):
    """mmpretrain's CustomDataset with a label map for every image.

    ``data_prefix`` names two folders of the same structure, such as
    ``dict(img_path='train', label_map_path='token_labels/train')``, relative to ``data_root``: the image
    ``train/cat/1.jpg`` has the label map ``token_labels/train/cat/1.pt`` or ``.npz``. Takes the arguments of
    :class:`mmpretrain.datasets.CustomDataset`.

    Raises:
        TokenLabelError: images without a label map, with their number and the first names, or ``data_prefix`` has no
            ``label_map_path``.
    """


@DATASETS.register_module()
class TokenLabelImageNet(_WithLabelMaps, ImageNet):
    """mmpretrain's ImageNet with a label map for every image; see :class:`TokenLabelDataset`."""
