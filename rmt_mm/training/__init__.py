"""What training with mmengine needs beside the model: layer-wise decay and a check of the data."""

from .data_check import DataCheckHook
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['DataCheckHook', 'LayerDecayOptimWrapperConstructor']
