"""What mmengine and its libraries expect of a backbone, apart from what it computes."""

from typing import List, Optional, Tuple, Union

import torch
import torch.distributed as dist
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arch import Arch
from ..checkpoints import BackboneSpec, is_pretrained, load_pretrained, require_whole_backbone, tensor_shapes

InitCfg = Union[dict, List[dict], None]


def resolve_init_cfg(init_cfg: InitCfg, pretrained: Optional[str]) -> InitCfg:
    """Return the ``init_cfg`` of a backbone, given its arguments ``init_cfg`` and ``pretrained``.

    Raises:
        ValueError: both are given, or ``pretrained`` names another backbone's weights.
    """
    if pretrained is None:
        return dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0) if init_cfg is None else init_cfg
    if init_cfg is not None:
        raise ValueError('pretrained and init_cfg say the same in two ways: set one of them.')
    if pretrained.startswith(('open-mmlab://', 'openmmlab://', 'torchvision://', 'mmcls://')):
        raise ValueError(
            f'pretrained={pretrained!r} names weights of another backbone, which RMT cannot load: set '
            'model.pretrained=None, and model.backbone.init_cfg to weights of RMT if you have any.'
        )
    return dict(type='Pretrained', checkpoint=pretrained)


class ZeroUnusedGradients(torch.autograd.Function):
    """Return tensors unchanged; in the backward pass, give an unused one a gradient of zeros.

    DistributedDataParallel waits for a gradient of every parameter: the LayerNorm of an output that no head uses would
    otherwise stop training in the second iteration.
    """

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> Tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tuple[Tensor, ...]:
        return grads


class OpenMMLabBackbone(BaseModule):
    """Initialisation, checkpoints, frozen stages, eval mode of norms, and layer-wise decay of :class:`rmt_mm.RMT`."""

    init_cfg: InitCfg
    arch: Arch
    stem: nn.Module
    downsamples: nn.ModuleList
    stages: nn.ModuleList
    mask_token: Optional[nn.Parameter]
    deploy: bool
    out_indices: Tuple[int, ...]
    out_norm: bool
    frozen_stages: int
    norm_eval: bool

    def init_weights(self) -> None:
        """Initialise by ``init_cfg``; type Pretrained loads official files too, by :func:`load_pretrained`."""
        if self.is_init:
            return
        init_cfg = self.init_cfg
        cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg] if init_cfg else []
        self.init_cfg = [cfg for cfg in cfgs if not is_pretrained(cfg)]
        super().init_weights()
        self.init_cfg = init_cfg
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        for cfg in cfgs:
            if is_pretrained(cfg):
                options = {key: value for key, value in cfg.items() if key != 'type'}
                load_pretrained(self, self.checkpoint_spec(), **options)

    def checkpoint_spec(self) -> BackboneSpec:
        """Return what this backbone demands of a checkpoint."""
        return BackboneSpec(self.arch, tensor_shapes(self), self.deploy)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        require_whole_backbone(self.checkpoint_spec(), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True):
        """Set the mode, with frozen stages (and with ``norm_eval`` every BatchNorm) kept in eval mode."""
        super().train(mode)
        self.freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def freeze(self) -> None:
        """Set the stem and the first ``frozen_stages`` stages to eval mode, without gradients."""
        frozen: List[nn.Module] = [self.stem] if self.frozen_stages >= 0 else []
        for stage in range(self.frozen_stages):
            frozen.append(self.stages[stage])
            if stage > 0:
                frozen.append(self.downsamples[stage - 1])
            if self.out_norm and stage in self.out_indices:
                frozen.append(getattr(self, f'norm{stage}'))
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def zero_unused_gradients(self, outs: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        """Apply :class:`ZeroUnusedGradients` to the outputs in distributed training."""
        if self.training and dist.is_available() and dist.is_initialized():
            return ZeroUnusedGradients.apply(*outs)
        return outs

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Return a parameter's layer, and the number of layers, for layer-wise learning rate decay.

        The stem (with the mask token) is layer 0, and every block is a layer. A downsampling belongs to the block after
        it, an output norm to the last block of its stage, and a parameter outside the backbone to the last layer
        (mmpretrain's convention).

        Args:
            param_name (str): a parameter's full name.
            prefix (str): prefix of the backbone's parameter names. Default ``''``.

        Returns:
            tuple[int, int]: the layer from 0, and the number of layers: all blocks, plus 2.
        """
        depths = self.arch.depths
        num_layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        part, *rest = param_name[len(prefix) :].split('.')
        if part in ('stem', 'mask_token'):
            layer = 0
        elif part == 'stages':
            layer = sum(depths[: int(rest[0])]) + int(rest[1]) + 1
        elif part == 'downsamples':
            layer = sum(depths[: int(rest[0]) + 1]) + 1
        elif part.startswith('norm'):
            layer = sum(depths[: int(part[len('norm') :]) + 1])
        else:
            layer = num_layers - 1
        return layer, num_layers
