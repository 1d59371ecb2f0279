"""Count a model's multiply-adds from shapes, without computing: L at COCO size takes a second and no memory.

Three kinds are counted separately: convolutions, Linear layers (and other products with weights), and attention, that
is, any product of two activations. MaSA's products are counted by formula, so that the kernel makes no difference.
"""

from collections import Counter
from typing import Any, Callable, Dict, List, Tuple

import torch
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from ..backbone import MaSA

# Numbers of boxes and masks in the published counts of two-stage detectors (mmdet 2's dummy forward).
NUM_PROPOSALS = 1000
NUM_MASKS = 100

_KIND_OF_OP = {
    torch.ops.aten.convolution: 'convolution',
    torch.ops.aten.mm: 'linear',
    torch.ops.aten.addmm: 'linear',
}

# Operations with a formula: of their arguments, in torch < 2.2 of their arguments' shapes.
_FORMULAS = getattr(flop_counter, 'flop_registry', None) or flop_counter.flop_mapping  # type: ignore[attr-defined]
# The name of the argument for the result.
_OUT = 'out' if torch.__version__ < (2, 4) else 'out_val'  # type: ignore[operator]  # a TorchVersion


def _flops(op: Callable, args: tuple, kwargs: dict, out: object) -> int:
    if hasattr(flop_counter, 'flop_registry'):
        return _FORMULAS[op](*args, **kwargs, **{_OUT: out})
    args, kwargs, out = tree_map(flop_counter.get_shape, (args, kwargs, out))
    return _FORMULAS[op](*args, **kwargs, out_shape=out)


class MacCounter(TorchDispatchMode):
    """Count multiply-adds and outputs of the products that run inside the context.

    Args:
        model (nn.Module): the model that will run; it gets hooks until the context is left.

    Attributes:
        macs (Counter): multiply-adds by kind: 'convolution', 'linear', 'attention'.
        activations (Counter): elements that these products output, by the same kinds. Attention counts its result, not
            the matrix of attention weights, which fused kernels never store.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.macs: Counter[str] = Counter()
        self.activations: Counter[str] = Counter()
        self._inside: List[str] = []  # kinds of the modules that are running, the innermost last
        self._hooks: List[RemovableHandle] = []

    def __enter__(self):
        for module in self.model.modules():
            if isinstance(module, (_ConvNd, nn.Linear)):
                self._hook(module, 'convolution' if isinstance(module, _ConvNd) else 'linear')
            elif isinstance(module, MaSA):
                self._hook(module, 'masa')
        return super().__enter__()

    def __exit__(self, *exc_info):
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        return super().__exit__(*exc_info)

    def _hook(self, module: nn.Module, kind: str) -> None:
        def enter(module, args):
            self._inside.append(kind)

        def leave(module, args, out):
            self._inside.pop()
            if kind == 'masa':
                macs = len(out) * module.multiply_adds(*out.shape[1:3])
                self._add('attention', macs, (2 if module.decomposed else 1) * out.numel())

        self._hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def _add(self, kind: str, macs: int, activations: int) -> None:
        self.macs[kind] += macs
        self.activations[kind] += activations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        op = func._overloadpacket
        inside = self._inside[-1] if self._inside else None
        if func.name() == 'rmt_mm::dwconv':  # which torch has no formula for
            self._add('convolution', out.numel() * args[1].shape[-1] ** 2, out.numel())
        if op in _FORMULAS:
            result = out[0] if isinstance(out, tuple) else out
            kind = inside if inside in ('convolution', 'linear') else _KIND_OF_OP.get(op, 'attention')
            if not (inside == 'masa' and kind == 'attention'):  # counted by formula
                self._add(kind, _flops(op, args, kwargs, out) // 2, result.numel())
        return out


def input_channels(model: Any) -> int:
    """Return the number of channels of the images that a model takes: those of its backbone's first convolution."""
    backbone = getattr(model, 'backbone', model)
    return next((m.in_channels for m in backbone.modules() if isinstance(m, nn.Conv2d)), 3)


def run_dense(model: Any, shape: Tuple[int, int]) -> None:
    """Run a detector, segmentor or classifier on one empty image of ``shape`` (H, W), as for the published counts.

    Box heads get :data:`NUM_PROPOSALS` boxes, mask heads :data:`NUM_MASKS`. Auxiliary heads, which only training uses,
    do not run.
    """
    image = torch.zeros(1, input_channels(model), *shape, device=next(model.parameters()).device)
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is None:
        sample = BaseDataElement(metainfo=dict(img_shape=shape, batch_input_shape=shape))
        model(image, [sample], mode='tensor')
        return
    model.rpn_head(model.extract_feat(image))
    for kind, count in (('bbox', NUM_PROPOSALS), ('mask', NUM_MASKS)):
        heads, extractors = (getattr(roi_head, name, None) for name in (f'{kind}_head', f'{kind}_roi_extractor'))
        if heads is None:
            continue
        # A cascade has lists of heads and extractors.
        pairs: Any = zip(*(m if isinstance(m, nn.ModuleList) else [m] for m in (heads, extractors)))
        for head, extractor in pairs:
            head(image.new_empty(count, extractor.out_channels, *extractor.roi_layers[0].output_size))


def count(model: Any, shape: Tuple[int, int], device: str = 'meta') -> Dict[str, int]:
    """Count parameters, multiply-adds and activations for one image of ``shape`` (H, W).

    Args:
        model (nn.Module): a detector, segmentor or classifier; it is moved to ``device`` and set to eval mode.
        shape (tuple[int]): height and width of the image.
        device (str): 'meta' computes nothing. Models that need values and not only shapes (queries chosen by their
            scores) can be counted on 'cpu', by running them. Default 'meta'.

    Returns:
        dict: ``params``, ``params_backbone``, the multiply-adds ``convolution``, ``linear`` and ``attention``, and
        ``activations`` (elements that the counted products output).

    Raises:
        NotImplementedError, RuntimeError: on 'meta', from models that need values.
    """
    model = model.to(device).eval()
    with torch.no_grad(), MacCounter(model) as counter:
        run_dense(model, shape)
    return dict(
        params=sum(p.numel() for p in model.parameters()),
        params_backbone=sum(p.numel() for p in model.backbone.parameters()),
        **{kind: counter.macs[kind] for kind in ('convolution', 'linear', 'attention')},
        activations=sum(counter.activations.values()),
    )
