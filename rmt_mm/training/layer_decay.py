"""Layer-wise learning rate decay: the further from the head, the lower the learning rate of a layer."""

from typing import List, Optional

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with a learning rate for each layer, for mmdet, mmseg and mmpretrain.

    Multiply the learning rate of a parameter of layer l of L by ``layer_decay_rate ** (L - 1 - l)``. The layers are
    those of ``model.backbone.get_layer_depth`` (RMT: the stem, then every block). Parameters outside the backbone keep
    their rate. mmpretrain's own constructor calls a method of the classifier that detectors and segmentors lack; those
    of mmdet and mmseg support a few backbones by name.

    Args:
        optim_wrapper_cfg (dict): the same as of mmengine's constructor.
        paramwise_cfg (dict): mmengine's options (``custom_keys``, ``norm_decay_mult``...), which keep their meaning,
            and ``layer_decay_rate`` (float), above 0 and up to 1.

    Raises:
        ValueError: ``layer_decay_rate`` is missing or out of range.
        TypeError: the model has no ``backbone.get_layer_depth``.

    Examples:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(layer_decay_rate=0.9, custom_keys={'norm': dict(decay_mult=0.)}))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(
                'LayerDecayOptimWrapperConstructor needs paramwise_cfg.layer_decay_rate, above 0 and up '
                f'to 1, got {rate!r}.'
            )
        self.layer_decay_rate = rate

    def add_params(self, params: List[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Add the parameters of ``module`` to ``params``, one group each; recurse into children."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:
            return
        # Without a prefix, module is the model: all groups exist, with the rates of paramwise_cfg.
        get_layer_depth = getattr(getattr(module, 'backbone', None), 'get_layer_depth', None)
        if get_layer_depth is None:
            raise TypeError(
                'layer-wise decay needs a model with backbone.get_layer_depth, which RMT and several of '
                f'mmpretrain have, and {type(module).__name__} has none.'
            )
        names = {id(param): name for name, param in module.named_parameters()}
        for group in params:
            layer, num_layers = get_layer_depth(names[id(group['params'][0])], prefix='backbone.')
            group['lr'] = group.get('lr', self.base_lr) * self.layer_decay_rate ** (num_layers - 1 - layer)
