"""The backbone: attention, its position tables, the layers around it, and their assembly."""

from .attention import MaSA
from .rmt import RMT

__all__ = ['MaSA', 'RMT']
