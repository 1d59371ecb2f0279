"""RMT, the backbone: a convolutional stem and four stages of blocks with Manhattan self-attention."""
from typing import List, Optional, Sequence, Tuple, Union

import torch
import torch.utils.checkpoint as cp
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arch import NUM_STAGES, resolve_arch
from ..checkpoints import is_pretrained, load_pretrained, refuse_foreign
from .attention import MaSA
from .deploy import fold
from .layers import FFN, ConvStem, Downsample, ResidualDWConv

# Between modules a feature map is (B, H, W, C) and contiguous, which is what Linear and LayerNorm want. A convolution
# sees the same memory as (B, C, H, W) in channels-last format, so that no permute below copies anything.


class RMTBlock(nn.Module):
    """CPE, then MaSA and FFN, each behind a LayerNorm and on a residual branch.

    Args:
        dim (int): channels.
        attn (MaSA): the block's attention.
        mlp_ratio (float): hidden channels of the FFN over ``dim``.
        drop_path (float): chance to drop a residual branch for a sample, in training.
        layer_scale_init (float, optional): initial value of LayerScale; None for a block without it.
    """

    def __init__(self,
                 dim: int,
                 attn: MaSA,
                 mlp_ratio: float,
                 drop_path: float = 0.,
                 layer_scale_init: Optional[float] = None) -> None:
        super().__init__()
        self.cpe = ResidualDWConv(dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = FFN(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)
        self.gamma1 = self.gamma2 = None
        if layer_scale_init is not None:
            # Four dimensions, as in the released code: the ImageNet recipe exempts 1-D parameters from weight decay,
            # and LayerScale is not among them.
            self.gamma1 = nn.Parameter(torch.full((1, 1, 1, dim), float(layer_scale_init)))
            self.gamma2 = nn.Parameter(torch.full((1, 1, 1, dim), float(layer_scale_init)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        x = self.cpe(x)
        for norm, layer, gamma in ((self.norm1, self.attn, self.gamma1), (self.norm2, self.ffn, self.gamma2)):
            out = layer(norm(x))
            x = x + self.drop_path(out if gamma is None else gamma * out)
        return x


@MODELS.register_module()
class RMT(BaseModule):
    """RMT backbone, `RMT: Retentive Networks Meet Vision Transformers <https://arxiv.org/abs/2309.11523>`_ (CVPR 2024).

    Outputs have strides 4, 8, 16 and 32; any input size works, and sizes that 32 does not divide are rounded up. Where
    paper and released code differ, this follows the code, which is what checkpoints need: see
    :mod:`rmt_mm.backbone.attention` (decay inside the softmax), :func:`rmt_mm.backbone.position.rotary_phases`
    (rotation) and :data:`rmt_mm.arch.ARCHS` (stage 3 of ``tiny``).

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, ``'large'`` (or t, s, b, l), or a dict with the keys of
            :class:`rmt_mm.arch.Arch`, four values each. Default ``'tiny'``.
        in_channels (int): channels of the input image. Default 3.
        out_indices (Sequence[int]): stages to return, from 0 to 3, negative ones counted from the end.
            Default (0, 1, 2, 3).
        drop_path_rate (float): stochastic depth, growing linearly over the blocks from 0 to this rate. Default 0. The
            published runs use 0.1, 0.15, 0.4, 0.5 for T, S, B, L.
        layer_scale_init (float): initial LayerScale, in stages whose ``layer_scales`` is True. Default 1e-6.
        norm_cfg (dict): norm of the convolutions in stem and downsampling. Default ``dict(type='BN')``.
        frozen_stages (int): 0 freezes the stem, k also the first k stages with their downsampling and output norms
            (as mmdet's ResNet counts): no gradients, and eval mode whatever ``train()`` says. Default -1, nothing.
        norm_eval (bool): keep every BatchNorm (SyncBN included) in eval mode. Default False, as the released dense
            code behaves.
        with_cp (bool | Sequence[bool]): recompute the blocks' activations in the backward pass to save memory, in all
            stages or in those marked. Default False.
        out_norm (bool): a LayerNorm (eps 1e-5) on each output, as dense prediction has it; classification has none.
            Default True.
        deploy (bool): build the form that :meth:`switch_to_deploy` leaves, for the checkpoints of
            tools/model_converters/reparameterize_model.py. Default False.
        init_cfg (dict | list[dict], optional): mmengine initialisation; by default the published one (truncated
            normal of std 0.02 for Linear).

    Raises:
        ValueError: from :func:`rmt_mm.arch.resolve_arch`, or ``out_indices``, ``frozen_stages``, ``with_cp`` or
            ``drop_path_rate`` out of range; in the forward pass, an input that is not (B, in_channels, H, W).
    """

    def __init__(self,
                 arch: Union[str, dict] = 'tiny',
                 in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.,
                 layer_scale_init: float = 1e-6,
                 norm_cfg: dict = dict(type='BN'),
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 with_cp: Union[bool, Sequence[bool]] = False,
                 out_norm: bool = True,
                 deploy: bool = False,
                 init_cfg: Union[dict, List[dict], None] = None) -> None:
        if init_cfg is None:
            init_cfg = dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.)
        super().__init__(init_cfg)
        self.arch = resolve_arch(arch)
        self.in_channels = in_channels
        self.out_indices = self._check_out_indices(out_indices)
        if not -1 <= frozen_stages <= NUM_STAGES:
            raise ValueError(f'frozen_stages must be from -1 (nothing) to {NUM_STAGES}, got {frozen_stages}.')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be from 0 up to, but not including, 1, got {drop_path_rate}.')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = (with_cp, ) * NUM_STAGES if isinstance(with_cp, bool) else tuple(with_cp)
        if len(self.with_cp) != NUM_STAGES:
            raise ValueError(f'with_cp must be a bool or have {NUM_STAGES} of them, one a stage, got {with_cp!r}.')

        dims, depths = self.arch.embed_dims, self.arch.depths
        drop_paths = [drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
        self.stem = ConvStem(in_channels, dims[0], norm_cfg)
        self.downsamples = nn.ModuleList(Downsample(dims[i], dims[i + 1], norm_cfg) for i in range(NUM_STAGES - 1))
        self.stages = nn.ModuleList()
        for stage, (dim, depth, heads, a, r, mlp_ratio, decomposed, layer_scale) in enumerate(zip(*self.arch)):
            first = sum(depths[:stage])
            self.stages.append(
                nn.ModuleList(
                    RMTBlock(
                        dim,
                        MaSA(dim, heads, a, r, decomposed),
                        mlp_ratio,
                        drop_path=drop_path,
                        layer_scale_init=layer_scale_init if layer_scale else None)
                    for drop_path in drop_paths[first:first + depth]))
            if out_norm and stage in self.out_indices:
                self.add_module(f'norm{stage}', nn.LayerNorm(dim))
        self.out_norm = out_norm
        self.deploy = deploy
        if deploy:
            fold(self)
        self._freeze_stages()

    @staticmethod
    def _check_out_indices(out_indices: Sequence[int]) -> Tuple[int, ...]:
        if isinstance(out_indices, int):
            out_indices = (out_indices, )
        for index in out_indices:
            if not -NUM_STAGES <= index < NUM_STAGES:
                raise ValueError(f'out_indices must be from 0 to {NUM_STAGES - 1} (or negative, from the end), '
                                 f'got {index} in {tuple(out_indices)}.')
        return tuple(sorted({index % NUM_STAGES for index in out_indices}))

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Compute the feature pyramid.

        Args:
            x (Tensor): images, (B, in_channels, H, W).

        Returns:
            tuple[Tensor]: for every i of ``out_indices``, (B, embed_dims[i], H_i, W_i), contiguous, where
            H_i = ceil(H / 2^(i + 2)).
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'RMT was built with in_channels={self.in_channels} and takes '
                             f'(B, {self.in_channels}, H, W), got an input of shape {tuple(x.shape)}.')
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outs = []
        for stage, blocks in enumerate(self.stages):
            if stage > 0:
                x = self.downsamples[stage - 1](x)
            x = x.permute(0, 2, 3, 1).contiguous()
            for block in blocks:
                if self.with_cp[stage] and x.requires_grad:
                    x = cp.checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
            if stage in self.out_indices:
                out = getattr(self, f'norm{stage}')(x) if self.out_norm else x
                # In the plain format: mmcv's RoIAlign reads memory as (B, C, H, W) whatever the strides say.
                outs.append(out.permute(0, 3, 1, 2).contiguous())
            if stage == self.out_indices[-1]:
                break
            x = x.permute(0, 3, 1, 2)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'RMT':
        """Set the mode, with frozen stages (and with ``norm_eval`` every BatchNorm) kept in eval mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Change to the form for inference, with the same outputs up to rounding: fewer layers and parameters.

        BatchNorms go into the convolutions before them, identities into the depthwise kernels' centres, LayerScale into
        the projections. This cannot be undone, and what is left cannot be trained as before.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError('switch_to_deploy() is for inference and cannot be undone: call eval() first.')
        fold(self)
        self.deploy = True

    def init_weights(self) -> None:
        """Initialise by ``init_cfg``; of type Pretrained, it takes official files too: :func:`load_pretrained`."""
        if self.is_init:
            return
        init_cfg = self.init_cfg
        cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg] if init_cfg else []
        self.init_cfg = [cfg for cfg in cfgs if not is_pretrained(cfg)]
        super().init_weights()
        self.init_cfg = init_cfg
        for cfg in cfgs:
            if is_pretrained(cfg):
                load_pretrained(self, **{key: value for key, value in cfg.items() if key != 'type'})

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        refuse_foreign(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _freeze_stages(self) -> None:
        frozen = [self.stem] if self.frozen_stages >= 0 else []
        for stage in range(self.frozen_stages):
            frozen.append(self.stages[stage])
            if stage > 0:
                frozen.append(self.downsamples[stage - 1])
            if self.out_norm and stage in self.out_indices:
                frozen.append(getattr(self, f'norm{stage}'))
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Return a parameter's layer, and the number of layers, for layer-wise learning rate decay.

        The stem is layer 0, every block is a layer, a downsampling belongs to the block after it, an output norm to
        the last block of its stage, and whatever is outside the backbone to the last layer (mmpretrain's convention).

        Args:
            param_name (str): a parameter's full name.
            prefix (str): what stands before the backbone's own names. Default ``''``.

        Returns:
            tuple[int, int]: the layer from 0, and the number of layers: all blocks, plus 2.
        """
        depths = self.arch.depths
        num_layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        part, *rest = param_name[len(prefix):].split('.')
        if part == 'stem':
            layer = 0
        elif part == 'stages':
            layer = sum(depths[:int(rest[0])]) + int(rest[1]) + 1
        elif part == 'downsamples':
            layer = sum(depths[:int(rest[0]) + 1]) + 1
        elif part.startswith('norm'):
            layer = sum(depths[:int(part[len('norm'):]) + 1])
        else:
            layer = num_layers - 1
        return layer, num_layers
