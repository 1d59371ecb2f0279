"""The kinds of files: what builds each, and its share of all cases."""

from .checkpoints import Checkpoints, LabelMaps
from .datasets import Annotations, LabelImages

KINDS = {
    'checkpoints': (Checkpoints, 0.30),
    'label-maps': (LabelMaps, 0.12),
    'coco': (Annotations, 0.15),
    'label-images': (LabelImages, 0.10),
}
