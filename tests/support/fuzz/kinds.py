"""The kinds of files: what builds each, and its share of all cases."""

from .checkpoints import Checkpoints, LabelMaps
from .configs import Configs
from .datasets import Annotations, LabelImages
from .pictures import Pictures
from .reports import Reports

KINDS = {
    'checkpoints': (Checkpoints, 0.35),
    'label-maps': (LabelMaps, 0.15),
    'coco': (Annotations, 0.18),
    'label-images': (LabelImages, 0.10),
    'pictures': (Pictures, 0.10),
    'configs': (Configs, 0.08),
    'reports': (Reports, 0.04),
}
