"""RMT as mmpretrain classifiers: the head, and training with token labels."""
from .head import RMTClsHead, RMTTokenLabelHead

__all__ = ['RMTClsHead', 'RMTTokenLabelHead']
