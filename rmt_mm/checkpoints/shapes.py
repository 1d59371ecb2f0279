"""Names and shapes of the tensors that checkpoints must hold: of RMT under our names, and of the authors' heads.

The tables show tensors that are missing, unexpected or of another size, without building a model.

The heads are those of the authors' detectors (mmdet 2) and segmentors (mmseg 0). mmdet 3 and mmseg 1 still use these
names, so the converter renames nothing. D is the backbone's channels, N the number of classes.
"""

from typing import Callable, Dict, NamedTuple, Tuple

from torch import nn

from ..arch import STEMS, Arch, Stage

Shapes = Dict[str, Tuple[int, ...]]
Dims = Tuple[int, ...]


class BackboneSpec(NamedTuple):
    """What a backbone demands of the checkpoints that are loaded into it."""

    arch: Arch
    shapes: Shapes  # the tensors of its state dict; a subclass may add to those of RMT, LoRA and FSDP replace them
    deploy: bool  # whether it is in the form for inference


def tensor_shapes(module: nn.Module) -> Shapes:
    """Return names and shapes of the tensors that a module's state dict must hold."""
    # Not from state_dict(), for which FSDP gathers the tensors of all processes.
    computed = {
        f'{name}.{buffer}'.lstrip('.')
        for name, child in module.named_modules()
        for buffer in child._non_persistent_buffers_set
    }
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tuple(tensor.shape) for name, tensor in tensors if name not in computed}


def layer(name: str, *weight: int) -> Shapes:
    """Return the shapes of a Linear or convolution with bias, given that of its weight."""
    return {f'{name}.weight': weight, f'{name}.bias': weight[:1]}


def layer_norm(name: str, dim: int) -> Shapes:
    """Return the shapes of a LayerNorm."""
    return {f'{name}.weight': (dim,), f'{name}.bias': (dim,)}


def batch_norm(name: str, dim: int) -> Shapes:
    """Return the shapes of a BatchNorm."""
    return {
        **layer_norm(name, dim),
        f'{name}.running_mean': (dim,),
        f'{name}.running_var': (dim,),
        f'{name}.num_batches_tracked': (),
    }


def backbone_shapes(arch: Arch, in_channels: int = 3, out_norms: bool = True) -> Shapes:
    """Return names and shapes of the tensors of :class:`rmt_mm.RMT`, with BatchNorm and all outputs.

    Args:
        arch (Arch): the size.
        in_channels (int): channels of the input image. Default 3.
        out_norms (bool): include the norms of dense prediction. Default True.
    """
    dims, shapes = arch.embed_dims, {}
    for i, (width, kernel, _) in enumerate(STEMS[arch.stem]):
        weight = int(width * dims[0]), in_channels, kernel, kernel
        shapes.update({**layer(f'stem.{3 * i}', *weight), **batch_norm(f'stem.{3 * i + 1}', weight[0])})
        in_channels = weight[0]
    for i, (dim, new_dim) in enumerate(zip(dims, dims[1:])):
        name = f'downsamples.{i}'
        shapes.update({**layer(f'{name}.conv', new_dim, dim, 3, 3), **batch_norm(f'{name}.norm', new_dim)})
    for i, stage in enumerate(arch.stages()):
        for j in range(stage.depth):
            shapes.update(_block(f'stages.{i}.{j}', stage))
    for i, dim in enumerate(dims if out_norms else ()):
        shapes.update(layer_norm(f'norm{i}', dim))
    return shapes


def _block(name: str, stage: Stage) -> Shapes:
    dim, hidden = stage.dim, int(stage.dim * stage.mlp_ratio)
    return {
        **({f'{name}.gamma{i}': (1, 1, 1, dim) for i in (1, 2)} if stage.layer_scale else {}),
        **(layer(f'{name}.cpe', dim, 1, 3, 3) if stage.cpe else {}),
        **layer_norm(f'{name}.norm1', dim),
        **({f'{name}.attn.log_rate': (stage.num_heads,)} if stage.decay == 'learned' else {}),
        **layer(f'{name}.attn.qkv', 3 * dim, dim),
        **(layer(f'{name}.attn.lce', dim, 1, 5, 5) if stage.lce else {}),
        **layer(f'{name}.attn.proj', dim, dim),
        **layer_norm(f'{name}.norm2', dim),
        **layer(f'{name}.ffn.fc1', hidden, dim),
        **layer(f'{name}.ffn.dwconv', hidden, 1, 3, 3),
        **layer(f'{name}.ffn.fc2', dim, hidden),
    }


def _convs(name: str, count: int) -> Shapes:
    shapes = {}
    for i in range(count):
        shapes.update(layer(f'{name}.{i}.conv', 256, 256, 3, 3))
    return shapes


def _conv_bn(name: str, out_channels: int, in_channels: int, kernel: int) -> Shapes:
    """Return the shapes of mmcv's ConvModule with BatchNorm, whose convolution has no bias."""
    weight = (out_channels, in_channels, kernel, kernel)
    return {f'{name}.conv.weight': weight, **batch_norm(f'{name}.bn', out_channels)}


def _fpn(dims: Dims) -> Shapes:
    shapes = {}
    for i, dim in enumerate(dims):
        shapes.update(layer(f'neck.lateral_convs.{i}.conv', 256, dim, 1, 1))
        shapes.update(layer(f'neck.fpn_convs.{i}.conv', 256, 256, 3, 3))
    return shapes


def _rpn() -> Shapes:
    return {
        **layer('rpn_head.rpn_conv', 256, 256, 3, 3),
        **layer('rpn_head.rpn_cls', 3, 256, 1, 1),
        **layer('rpn_head.rpn_reg', 12, 256, 1, 1),
    }


def _mask_head(name: str, classes: int) -> Shapes:
    return {
        **_convs(f'{name}.convs', 4),
        **layer(f'{name}.upsample', 256, 256, 2, 2),
        **layer(f'{name}.conv_logits', classes, 256, 1, 1),
    }


def _box_head(name: str, classes: int) -> Shapes:
    return {
        **layer(f'{name}.fc_cls', classes + 1, 1024),
        **layer(f'{name}.fc_reg', 4 * classes, 1024),
        **layer(f'{name}.shared_fcs.0', 1024, 256 * 7 * 7),
    }


def faster_rcnn(dims: Dims, classes: int) -> Shapes:
    head = 'roi_head.bbox_head'
    return {**_fpn(dims), **_rpn(), **_box_head(head, classes), **layer(f'{head}.shared_fcs.1', 1024, 1024)}


def mask_rcnn(dims: Dims, classes: int) -> Shapes:
    return {**faster_rcnn(dims, classes), **_mask_head('roi_head.mask_head', classes)}


def cascade_mask_rcnn(dims: Dims, classes: int) -> Shapes:
    shapes = {**_fpn(dims), **_rpn()}
    for stage in range(3):
        head = f'roi_head.bbox_head.{stage}'
        shapes.update(_box_head(head, classes))
        for i in range(4):
            shapes.update(_conv_bn(f'{head}.shared_convs.{i}', 256, 256, 3))
        shapes.update(_mask_head(f'roi_head.mask_head.{stage}', classes))
    return shapes


def retinanet(dims: Dims, classes: int) -> Shapes:
    shapes = _fpn(dims[1:])  # from stride 8, with two more levels made from the last stage
    shapes.update(layer('neck.fpn_convs.3.conv', 256, dims[-1], 3, 3))
    shapes.update(layer('neck.fpn_convs.4.conv', 256, 256, 3, 3))
    for branch, rows in (('cls', 9 * classes), ('reg', 9 * 4)):  # 9 anchors a place
        shapes.update(_convs(f'bbox_head.{branch}_convs', 4))
        shapes.update(layer(f'bbox_head.retina_{branch}', rows, 256, 3, 3))
    return shapes


def semantic_fpn(dims: Dims, classes: int) -> Shapes:
    shapes = {**_fpn(dims), **layer('decode_head.conv_seg', classes, 128, 1, 1)}
    for scale in range(4):
        for i in range(max(1, scale)):  # with an upsampling after each where scale > 0
            shapes.update(_conv_bn(f'decode_head.scale_heads.{scale}.{2 * i}', 128, 128 if i else 256, 3))
    return shapes


def upernet(dims: Dims, classes: int) -> Shapes:
    head, width = 'decode_head', 512
    shapes = layer(f'{head}.conv_seg', classes, width, 1, 1)
    for i in range(4):
        shapes.update(_conv_bn(f'{head}.psp_modules.{i}.1', width, dims[-1], 1))
    shapes.update(_conv_bn(f'{head}.bottleneck', width, dims[-1] + 4 * width, 3))
    for i, dim in enumerate(dims[:-1]):
        shapes.update(_conv_bn(f'{head}.lateral_convs.{i}', width, dim, 1))
        shapes.update(_conv_bn(f'{head}.fpn_convs.{i}', width, width, 3))
    shapes.update(_conv_bn(f'{head}.fpn_bottleneck', width, 4 * width, 3))
    shapes.update(_conv_bn('auxiliary_head.convs.0', 256, dims[2], 3))
    return {**shapes, **layer('auxiliary_head.conv_seg', classes, 256, 1, 1)}


def classifier(dims: Dims, classes: int, token_label: bool = False) -> Shapes:
    """Return names and shapes of an official classification head's tensors."""
    dim, hidden = dims[-1], 1024
    shapes = {**layer('proj', hidden, dim), **batch_norm('norm', hidden), **layer('head', classes, hidden)}
    if token_label:
        shapes.update(layer('aux_head', classes, dim))
    return shapes


class Head(NamedTuple):
    """A model around the backbone."""

    task: str  # 'detector' or 'segmentor'
    shapes: Callable[[Dims, int], Shapes]  # of D and N
    mark: str  # a prefix of tensor names that later models in HEADS lack
    class_tensor: str  # a tensor whose number of rows gives N
    rows_to_classes: Callable[[int], int]


HEADS = {
    'Cascade Mask R-CNN': Head(
        'detector',
        cascade_mask_rcnn,
        'roi_head.bbox_head.0.',
        'roi_head.bbox_head.0.fc_cls.weight',
        lambda rows: rows - 1,
    ),
    'Mask R-CNN': Head(
        'detector', mask_rcnn, 'roi_head.mask_head.', 'roi_head.bbox_head.fc_cls.weight', lambda rows: rows - 1
    ),
    'Faster R-CNN': Head(
        'detector', faster_rcnn, 'roi_head.bbox_head.', 'roi_head.bbox_head.fc_cls.weight', lambda rows: rows - 1
    ),
    'RetinaNet': Head(
        'detector', retinanet, 'bbox_head.retina_', 'bbox_head.retina_cls.weight', lambda rows: rows // 9
    ),
    'UperNet': Head('segmentor', upernet, 'decode_head.psp_modules.', 'decode_head.conv_seg.weight', lambda rows: rows),
    'Semantic FPN': Head(
        'segmentor', semantic_fpn, 'decode_head.scale_heads.', 'decode_head.conv_seg.weight', lambda rows: rows
    ),
}
