"""Additions to mmengine's training: layer-wise learning rate decay and a check of the data."""

from .data_check import DataCheckHook
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['DataCheckHook', 'LayerDecayOptimWrapperConstructor']
