"""RMT, the backbone: a convolutional stem and four stages of blocks with Manhattan self-attention."""

from typing import Iterable, List, Optional, Sequence, Tuple, Union, cast

import torch
import torch.distributed as dist
import torch.utils.checkpoint as cp
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops.memory import raise_dynamic_threshold
from ..arch import NUM_STAGES, Stage, resolve_arch, resolve_out_indices
from ..checkpoints import BackboneSpec, is_pretrained, load_pretrained, require_whole_backbone, tensor_shapes
from .attention import MaSA
from .depthwise import ResidualDWConv
from ..ops.recorders import is_plain, is_recorded, is_traced
from .ffn import FFN
from ..ops.tables import PositionTables
from .stem import ConvStem, Downsample, has_fixed_statistics

# Between modules a feature map is (B, H, W, C) and contiguous, as Linear and LayerNorm need it. A convolution reads the
# same memory as (B, C, H, W) in channels-last format, so that no permute below copies anything.

# Without gradients, the CPU computes images one at a time if they have this many pixels for each thread: smaller maps
# stay in its cache, and fewer of them are so large that the C library returns them to the system after each use.
MIN_SEPARATE_PIXELS = 2**17


def scale(gamma: Optional[Tensor], x: Tensor) -> Tensor:
    """Apply LayerScale, if there is one."""
    return x if gamma is None else gamma * x


class RMTBlock(nn.Module):
    """CPE, then MaSA and FFN, each after a LayerNorm and on a residual branch.

    Args:
        stage (Stage): the sizes of the block.
        drop_path (float): probability of dropping a residual branch for a sample, in training. Default 0.
        layer_scale_init (float): initial value of LayerScale, if the stage has it. Default 1e-6.
        ffn_with_cp (bool): recompute the FFN's activations in the backward pass. Default True.
    """

    def __init__(
        self, stage: Stage, drop_path: float = 0.0, layer_scale_init: float = 1e-6, ffn_with_cp: bool = True
    ) -> None:
        super().__init__()
        dim = stage.dim
        self.cpe = ResidualDWConv(dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MaSA(dim, stage.num_heads, stage.init_value, stage.heads_range, stage.decomposed)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = FFN(dim, stage.mlp_ratio, ffn_with_cp)
        self.drop_path2 = DropPath(drop_path)
        self.gamma1 = self.gamma2 = None
        if stage.layer_scale:
            # Four dimensions, as in the released code: the ImageNet recipe exempts 1-D parameters from weight decay,
            # but not LayerScale.
            self.gamma1, self.gamma2 = (
                nn.Parameter(torch.full((1, 1, 1, dim), float(layer_scale_init))) for _ in range(2)
            )

    def forward(self, x: Tensor, tables: Optional[PositionTables] = None) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C), with the position tables of its stage (computed by default)."""
        x = self.cpe(x)
        x = x + self.drop_path1(scale(self.gamma1, self.attn(self.norm1(x), tables)))
        return x + self.drop_path2(scale(self.gamma2, self.ffn(self.norm2(x))))

    @torch.no_grad()
    def fold(self) -> None:
        """Fuse the additions of x into the depthwise convolutions, and LayerScale into the Linear layers before it."""
        self.cpe.fold()
        self.ffn.dwconv.fold()
        for name, projection in (('gamma1', self.attn.proj), ('gamma2', self.ffn.fc2)):
            gamma = getattr(self, name)
            if gamma is not None:
                projection.weight.mul_(gamma.flatten()[:, None])
                projection.bias.mul_(gamma.flatten())
                setattr(self, name, None)


class RMTStage(nn.ModuleList):
    """Blocks of one size: (B, H, W, C) to (B, H, W, C).

    Args:
        blocks (Iterable[RMTBlock]): the blocks.
        with_cp (bool): recompute the blocks' activations in the backward pass. Default False.
    """

    def __init__(self, blocks: Iterable[RMTBlock], with_cp: bool = False) -> None:
        super().__init__(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        tables = cast(RMTBlock, self[0]).attn.position_tables(x)
        for block in self:
            if self.with_cp and x.requires_grad:
                x = cp.checkpoint(block, x, tables, use_reentrant=False)
            else:
                x = block(x, tables)
        return x


class ShareGradients(torch.autograd.Function):
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


@MODELS.register_module()
class RMT(BaseModule):
    """RMT backbone, `RMT: Retentive Networks Meet Vision Transformers <https://arxiv.org/abs/2309.11523>`_ (CVPR 2024).

    Outputs have strides 4, 8, 16 and 32. Any input size works; output sizes are rounded up where 32 does not divide the
    input. Where paper and released code differ, this class follows the code, because checkpoints need it: see
    :mod:`rmt_mm.backbone.attention` (decay inside the softmax), :func:`rmt_mm.ops.tables.rotary_phases`
    (rotation) and :data:`rmt_mm.arch.ARCHS` (stage 3 of ``tiny``).

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, ``'large'`` (or t, s, b, l), or a dict with the keys of
            :class:`rmt_mm.arch.Arch`, four values each. Default ``'tiny'``.
        in_channels (int): channels of the input image. Default 3.
        out_indices (int | Sequence[int]): stages to return, from 0 to 3, negative ones counted from the end.
            Default (0, 1, 2, 3).
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

    Attributes:
        embed_dims (tuple[int]): channels of the four stages.
        strides (tuple[int]): strides of the four stages: 4, 8, 16, 32.
        out_channels (tuple[int]): channels of the outputs, that is, of the stages in ``out_indices``.

    Raises:
        ValueError: from :func:`rmt_mm.arch.resolve_arch`; ``out_indices``, ``frozen_stages``, ``with_cp`` or
            ``drop_path_rate`` out of range; ``pretrained`` given with ``init_cfg``, or for another backbone's weights;
            in the forward pass, an input that is not (B, in_channels, H, W), or a mask that does not fit.
    """

    strides = (4, 8, 16, 32)
    init_cfg: Union[dict, List[dict], None]

    def __init__(
        self,
        arch: Union[str, dict] = 'tiny',
        in_channels: int = 3,
        out_indices: Union[int, Sequence[int]] = (0, 1, 2, 3),
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
        init_cfg: Union[dict, List[dict], None] = None,
    ) -> None:
        if pretrained is not None:
            init_cfg = self._init_cfg_of(pretrained, init_cfg)
        if init_cfg is None:
            init_cfg = dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0)
        super().__init__(init_cfg)
        raise_dynamic_threshold()
        self.arch = resolve_arch(arch)
        self.in_channels = in_channels
        self.out_indices = resolve_out_indices(out_indices)
        if not -1 <= frozen_stages <= NUM_STAGES:
            raise ValueError(f'frozen_stages must be from -1 (nothing) to {NUM_STAGES}, got {frozen_stages}.')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be from 0 up to, but not including, 1, got {drop_path_rate}.')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = (with_cp,) * NUM_STAGES if isinstance(with_cp, bool) else tuple(with_cp)
        if len(self.with_cp) != NUM_STAGES:
            raise ValueError(f'with_cp must be a bool or have {NUM_STAGES} of them, one a stage, got {with_cp!r}.')

        self.embed_dims = dims = self.arch.embed_dims
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        num_blocks = sum(self.arch.depths)
        drop_paths = iter([drop_path_rate * i / max(1, num_blocks - 1) for i in range(num_blocks)])
        self.stem = ConvStem(in_channels, dims[0], norm_cfg)
        self.downsamples = nn.ModuleList(Downsample(dims[i], dims[i + 1], norm_cfg) for i in range(NUM_STAGES - 1))
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
            self._fold()
        self._freeze_stages()

    @staticmethod
    def _init_cfg_of(pretrained: str, init_cfg: Union[dict, List[dict], None]) -> dict:
        if init_cfg is not None:
            raise ValueError('pretrained and init_cfg say the same in two ways: set one of them.')
        if pretrained.startswith(('open-mmlab://', 'openmmlab://', 'torchvision://', 'mmcls://')):
            raise ValueError(
                f'pretrained={pretrained!r} names weights of another backbone, which RMT cannot load: set '
                'model.pretrained=None, and model.backbone.init_cfg to weights of RMT if you have any.'
            )
        return dict(type='Pretrained', checkpoint=pretrained)

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tuple[Tensor, ...]:
        """Compute the feature pyramid; on the CPU without gradients, of large images one at a time.

        Args:
            x (Tensor): images, (B, in_channels, H, W).
            mask (Tensor, optional): (B, H_0, W_0), 1 where the learned token replaces the stem's output, 0 elsewhere;
                needs ``mask_token=True``. The stem's convolutions overlap: tokens next to a masked one depend on a few
                of its pixels. Default None.

        Returns:
            tuple[Tensor]: for every i of ``out_indices``, (B, embed_dims[i], H_i, W_i), contiguous, where
            H_i = ceil(H / 2^(i + 2)).
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'RMT was built with in_channels={self.in_channels} and takes '
                f'(B, {self.in_channels}, H, W), got an input of shape {tuple(x.shape)}.'
            )
        if mask is None and self._splits_batch(x):
            return self._compute_one_by_one(x)
        return self._compute(x, mask)

    def _splits_batch(self, x: Tensor) -> bool:
        """Tell whether the images of a batch (B, C, H, W) are computed one at a time.

        Hooks of modules expect the whole batch, and a BatchNorm in training mode, or without running statistics, needs
        it.
        """

        def needs_batch(module: nn.Module) -> bool:
            is_stateless = isinstance(module, _BatchNorm) and not has_fixed_statistics(module)
            return module.training or is_stateless or not is_plain(module, type(module))

        return (
            not torch.is_grad_enabled()
            and not is_recorded()
            and len(x) > 1
            and x.device.type == 'cpu'
            and x.shape[2] * x.shape[3] >= MIN_SEPARATE_PIXELS * torch.get_num_threads()
            and not any(map(needs_batch, list(self.modules())[1:]))
        )

    def _compute_one_by_one(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Compute :meth:`forward` one image at a time, into outputs that are allocated once."""
        outs: Tuple[Tensor, ...] = ()
        for i, image in enumerate(x.split(1)):
            levels = self._compute(image)
            outs = outs or tuple(level.new_empty(len(x), *level.shape[1:]) for level in levels)
            for out, level in zip(outs, levels):
                out[i] = level[0]
        return outs

    def _compute(self, x: Tensor, mask: Optional[Tensor] = None) -> Tuple[Tensor, ...]:
        """Compute :meth:`forward` of all images together."""
        # torch.func.vmap does not support memory formats.
        x = self.stem(x if is_traced() else x.contiguous(memory_format=torch.channels_last))
        if mask is not None:
            x = self._replace_masked(x, mask)
        outs = []
        for i in range(self.out_indices[-1] + 1):
            if i > 0:
                x = self.downsamples[i - 1](x)
            x = self.stages[i](x.permute(0, 2, 3, 1).contiguous())
            if i in self.out_indices:
                outs.append(getattr(self, f'norm{i}')(x) if self.out_norm else x)
            x = x.permute(0, 3, 1, 2)
        if self.training and dist.is_available() and dist.is_initialized():
            outs = ShareGradients.apply(*outs)
        # Make outputs contiguous: mmcv's RoIAlign reads memory as (B, C, H, W) and ignores the strides.
        return tuple(out.permute(0, 3, 1, 2).contiguous() for out in outs)

    def _replace_masked(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.mask_token is None:
            raise ValueError('RMT takes a mask only if it was built with mask_token=True.')
        if mask.shape != (len(x), *x.shape[2:]):
            raise ValueError(f'the mask must be (B, H / 4, W / 4) = {(len(x), *x.shape[2:])}, got {tuple(mask.shape)}.')
        mask = mask[:, None].to(x.dtype)
        return x * (1 - mask) + self.mask_token.to(x.dtype) * mask

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
        """Change to the form for inference, with the same outputs up to rounding, fewer layers and fewer parameters.

        Fuse BatchNorms into the convolutions before them, identities into the depthwise kernels' centres, and
        LayerScale into the projections. This cannot be undone, and the result cannot be trained as before.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError('switch_to_deploy() is for inference and cannot be undone: call eval() first.')
        self._fold()
        self.deploy = True

    def _fold(self) -> None:
        for module in list(self.modules()):
            if isinstance(module, (ConvStem, Downsample, RMTBlock)):
                module.fold()

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

    def _freeze_stages(self) -> None:
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
