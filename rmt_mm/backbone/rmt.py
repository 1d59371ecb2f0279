"""RMT, the backbone: a convolutional stem and four stages of blocks with Manhattan self-attention."""

from typing import Optional, Sequence, Tuple, Union

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import ops
from ..arch import resolve_arch, resolve_out_indices
from .block import RMTBlock, RMTStage
from .fold import fold
from .openmmlab import InitCfg, OpenMMLabBackbone, resolve_init_cfg
from .stem import ConvStem, Downsample

# Between modules a feature map is (B, H, W, C) and contiguous, as Linear and LayerNorm need it. A convolution reads the
# same memory as (B, C, H, W) in channels-last format, so that no permute below copies anything.


@MODELS.register_module()
class RMT(OpenMMLabBackbone):
    """RMT backbone, `RMT: Retentive Networks Meet Vision Transformers <https://arxiv.org/abs/2309.11523>`_ (CVPR 2024).

    Outputs have strides 4, 8, 16 and 32 (``'deit-small'`` has one, of stride 16). Any input size works; output sizes
    are rounded up where the stride does not divide the input. Where paper and released code differ, this class follows
    the code, because checkpoints need it: see :mod:`rmt_mm.backbone.attention` (decay inside the softmax),
    :func:`rmt_mm.ops.tables.rotary_phases` (rotation) and :data:`rmt_mm.arch.ARCHS` (stage 3 of ``tiny``).

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, ``'large'`` (or t, s, b, l); RMT on other skeletons:
            ``'swin-tiny'``, ``'swin-small'``, ``'deit-small'``; or a dict with the fields of
            :class:`rmt_mm.arch.Arch`. Default ``'tiny'``.
        in_channels (int): channels of the input image. Default 3.
        out_indices (int | Sequence[int], optional): stages to return, from 0 to 3, negative ones counted from the end.
            Default None, all.
        drop_path_rate (float): stochastic depth, which grows linearly over the blocks from 0 to this rate. Default 0.
            The published runs use 0.1, 0.15, 0.4, 0.5 for T, S, B, L.
        layer_scale_init (float): initial LayerScale, in stages whose ``layer_scales`` is True. Default 1e-6.
        norm_cfg (dict): norm of the convolutions in stem and downsampling. Default ``dict(type='BN')``.
        frozen_stages (int): 0 freezes the stem, k also the first k stages with their downsampling and output norms
            (as mmdet's ResNet counts): no gradients, and eval mode even after ``train()``. Default -1, nothing.
        norm_eval (bool): keep every BatchNorm (SyncBN included) in eval mode. Default False, as in the released dense
            code.
        with_cp (bool | Sequence[bool]): recompute the blocks' activations in the backward pass to save memory, in all
            stages or in those marked True. Default False.
        ffn_with_cp (bool): in the backward pass, recompute GELU and the depthwise convolution of every FFN, whose maps
            are the largest of a block. False needs more memory and less time. Default True.
        out_norm (bool): put a LayerNorm (eps 1e-5) on each output, as dense prediction needs; classification has none.
            Default True.
        mask_token (bool): add a learned token that replaces masked ones, for masked image modelling (mmpretrain's
            SimMIM), which passes a ``mask`` to the forward pass. Default False.
        deploy (bool): build the form that :meth:`switch_to_deploy` makes, for checkpoints of that form. Default False.
        pretrained (str, optional): a checkpoint of RMT, the same as ``init_cfg=dict(type='Pretrained',
            checkpoint=...)``; mmseg's segmentors pass their own argument ``pretrained`` on to the backbone. Default
            None.
        init_cfg (dict | list[dict], optional): mmengine initialisation; by default the published one (truncated
            normal of std 0.02 for Linear).
        arch_options (dict, optional): fields of :class:`rmt_mm.arch.Arch` that differ from ``arch``, for ablations:
            ``dict(lce=False)``. Default None.

    Attributes:
        embed_dims (tuple[int]): channels of the four stages.
        strides (tuple[int]): strides of the stages: 4, 8, 16, 32.
        out_channels (tuple[int]): channels of the outputs, that is, of the stages in ``out_indices``.

    Raises:
        ValueError: from :func:`rmt_mm.arch.resolve_arch`; ``out_indices``, ``frozen_stages``, ``with_cp`` or
            ``drop_path_rate`` out of range; ``pretrained`` given with ``init_cfg``, or for another backbone's weights;
            in the forward pass, an input that is not (B, in_channels, H, W), or a mask that does not fit.
    """

    def __init__(
        self,
        arch: Union[str, dict] = 'tiny',
        in_channels: int = 3,
        out_indices: Union[int, Sequence[int], None] = None,
        drop_path_rate: float = 0.0,
        layer_scale_init: float = 1e-6,
        norm_cfg: dict = dict(type='BN'),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: Union[bool, Sequence[bool]] = False,
        ffn_with_cp: bool = True,
        out_norm: bool = True,
        mask_token: bool = False,
        deploy: bool = False,
        pretrained: Optional[str] = None,
        init_cfg: InitCfg = None,
        arch_options: Optional[dict] = None,
    ) -> None:
        super().__init__(resolve_init_cfg(init_cfg, pretrained))
        self.arch = resolve_arch(arch, arch_options)
        self.in_channels = in_channels
        num_stages = len(self.arch.depths)
        self.out_indices = resolve_out_indices(out_indices, num_stages)
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f'frozen_stages must be from -1 (nothing) to {num_stages}, got {frozen_stages}.')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be from 0 up to, but not including, 1, got {drop_path_rate}.')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = (with_cp,) * num_stages if isinstance(with_cp, bool) else tuple(with_cp)
        if len(self.with_cp) != num_stages:
            raise ValueError(f'with_cp must be a bool or have {num_stages} of them, one per stage, got {with_cp!r}.')

        self.embed_dims, self.strides = self.arch.embed_dims, self.arch.strides()
        dims = self.embed_dims
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        num_blocks = sum(self.arch.depths)
        drop_paths = iter([drop_path_rate * i / max(1, num_blocks - 1) for i in range(num_blocks)])
        self.stem = ConvStem(in_channels, dims[0], norm_cfg, self.arch.stem)
        self.downsamples = nn.ModuleList(Downsample(*pair, norm_cfg) for pair in zip(dims, dims[1:]))
        self.stages = nn.ModuleList(
            RMTStage(
                [RMTBlock(stage, next(drop_paths), layer_scale_init, ffn_with_cp) for _ in range(stage.depth)],
                recompute,
            )
            for stage, recompute in zip(self.arch.stages(), self.with_cp)
        )
        self.out_norm = out_norm
        if out_norm:
            for i in self.out_indices:
                self.add_module(f'norm{i}', nn.LayerNorm(dims[i]))
        self.mask_token = nn.Parameter(torch.zeros(1, dims[0], 1, 1)) if mask_token else None
        self.deploy = deploy
        if deploy:
            fold(self)
        self.freeze()

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tuple[Tensor, ...]:
        """Compute the feature pyramid; on the CPU without gradients, of large images one at a time.

        Args:
            x (Tensor): images, (B, in_channels, H, W).
            mask (Tensor, optional): (B, H_0, W_0), 1 where the learned token replaces the stem's output, 0 elsewhere;
                needs ``mask_token=True``. The stem's convolutions overlap: tokens next to a masked one depend on a few
                of its pixels. Default None.

        Returns:
            tuple[Tensor]: for every i of ``out_indices``, (B, embed_dims[i], H_i, W_i), contiguous, where
            H_i = ceil(H / strides[i]).
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'RMT was built with in_channels={self.in_channels} and takes '
                f'(B, {self.in_channels}, H, W), got an input of shape {tuple(x.shape)}.'
            )
        x = self.stem(ops.to_map(x).permute(0, 3, 1, 2))  # in channels-last format
        if mask is not None:
            x = self._replace_masked(x, mask)
        outs = []
        for i in range(self.out_indices[-1] + 1):
            if i > 0:
                x = self.downsamples[i - 1](x)
            x = self.stages[i](ops.to_map(x))
            if i in self.out_indices:
                outs.append(getattr(self, f'norm{i}')(x) if self.out_norm else x)
            x = x.permute(0, 3, 1, 2)
        # Make outputs contiguous: mmcv's RoIAlign reads memory as (B, C, H, W) and ignores the strides.
        return tuple(out.permute(0, 3, 1, 2).contiguous() for out in self.zero_unused_gradients(tuple(outs)))

    def _replace_masked(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.mask_token is None:
            raise ValueError('RMT takes a mask only if it was built with mask_token=True.')
        if mask.shape != (len(x), *x.shape[2:]):
            raise ValueError(f'the mask must be (B, H / 4, W / 4) = {(len(x), *x.shape[2:])}, got {tuple(mask.shape)}.')
        mask = mask[:, None].to(x.dtype)
        return x * (1 - mask) + self.mask_token.to(x.dtype) * mask

    def switch_to_deploy(self) -> None:
        """Change to the form for inference, with the same outputs up to rounding, fewer layers and fewer parameters.

        Fuse BatchNorms into the convolutions before them, identities into the depthwise kernels' centres, and
        LayerScale into the projections. This cannot be undone, and the result cannot be trained as before.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError('switch_to_deploy() is for inference and cannot be undone: call eval() first.')
        fold(self)
        self.deploy = True
