"""The kinds of files: what builds each, and its share of all cases."""

from .checkpoints import Checkpoints, LabelMaps
from .configs import Configs
from .datasets import Annotations, LabelImages
from .pictures import Pictures
from .reports import Reports

KINDS = {
    'checkpoints': (Checkpoints, 0.30),
    'label-maps': (LabelMaps, 0.12),
    'coco': (Annotations, 0.15),
    'label-images': (LabelImages, 0.10),
    'pictures': (Pictures, 0.15),
    'configs': (Configs, 0.10),
    'reports': (Reports, 0.08),
}
