"""Tell who watches a call of an operator. Nothing else in the package asks for gradients, compilers, tracers or hooks.

A compiler, a tracer or a functional transform records operations instead of running them, and needs the plain form. A
hook reads or changes what a layer gets and returns, so a kernel must call that layer instead of using its weights.
"""

from typing import NamedTuple, Set, Type

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import _get_current_dispatch_mode

_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
# Classes whose forward pass a kernel may compute from their weights. Quantised, parametrised and adapted layers are of
# another class.
_KNOWN: Set[Type[nn.Module]] = {nn.Linear}


class Call(NamedTuple):
    """Where a call of an operator runs, and who watches it."""

    device: str  # type of the device, such as 'cpu'
    dtype: torch.dtype
    grad: bool  # autograd records the call
    needs_grad: bool  # the map needs a gradient
    compiled: bool  # torch.compile or torch.export traces the call
    exported: bool  # torch.export traces it; an older torch that cannot tell answers for torch.compile too
    hides_symbols: bool  # torch.export traces it in strict mode, in which symbols of sizes look like integers
    traced: bool  # torch.jit.trace, the older ONNX exporter or a torch.func transform handles it
    plain: bool  # every layer is of a known class and without hooks

    @classmethod
    def of(cls, x: Tensor, *layers: nn.Module) -> 'Call':
        """Describe a call with a map ``x`` and the ``layers`` that the operator applies to it."""
        compiled = is_compiling()
        exported = compiled and getattr(torch.compiler, 'is_exporting', is_compiling)()
        return cls(
            device=x.device.type,
            dtype=x.dtype,
            grad=torch.is_grad_enabled(),
            needs_grad=x.requires_grad,
            compiled=compiled,
            exported=exported,
            hides_symbols=exported and hasattr(torch.compiler, 'is_exporting') and torch.compiler.is_dynamo_compiling(),
            traced=not compiled and is_traced(),
            plain=all(type(layer) in _KNOWN and not has_hooks(layer) for layer in layers),
        )

    def why_not_run(self) -> str:
        """Return who records this call instead of running it, or an empty string."""
        if self.compiled:
            return 'torch.export records the call' if self.exported else 'torch.compile records the call'
        return 'a tracer or a functional transform records the call' if self.traced else ''


def known(layer: Type[nn.Module]) -> Type[nn.Module]:
    """Declare, as a decorator, that kernels may compute a class of layers from its weights."""
    _KNOWN.add(layer)
    return layer


def is_compiling() -> bool:
    """Tell whether torch.compile or torch.export traces this call."""
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()  # torch < 2.3


def is_traced() -> bool:
    """Tell whether ``torch.jit.trace``, the older ONNX exporter or a torch.func transform handles this call."""
    return torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None


def makes_values() -> bool:
    """Tell whether a tensor made now holds values: nobody records the call, and no mode (FakeTensorMode) wraps it."""
    return not is_compiling() and not is_traced() and _get_current_dispatch_mode() is None


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a call of ``module`` runs hooks beside its forward pass."""
    return bool(
        any(getattr(module, name, None) for name in _HOOKS)
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
    )
