"""The kinds of files: what builds each, and its share of all cases."""

from .checkpoints import Checkpoints, LabelMaps

KINDS = {
    'checkpoints': (Checkpoints, 0.30),
    'label-maps': (LabelMaps, 0.12),
}
