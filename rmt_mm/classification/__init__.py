"""RMT for mmpretrain: the classification head, and training with token labels."""

from ..errors import TokenLabelError
from .classifier import TokenLabelClassifier
from .dataset import TokenLabelDataset, TokenLabelImageNet
from .ema_hook import BatchScaledEMAHook
from .geometry import TrackGeometry
from .head import RMTClsHead, RMTTokenLabelHead
from .model_names import register_model_names
from .token_label import LoadLabelMap, MakeTokenLabels

register_model_names()

__all__ = [
    'BatchScaledEMAHook',
    'LoadLabelMap',
    'MakeTokenLabels',
    'RMTClsHead',
    'RMTTokenLabelHead',
    'TokenLabelClassifier',
    'TokenLabelDataset',
    'TokenLabelError',
    'TokenLabelImageNet',
    'TrackGeometry',
]
