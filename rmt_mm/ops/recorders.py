"""Tell when operations may take the shortcuts of eager execution: in place, by a faster product, recomputed later.

A compiler, a tracer or a functional transform records operations instead of running them, and needs the plain form. A
forward hook may keep an output, which must not be overwritten after the hook has run.
"""

import functools
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import _get_current_dispatch_mode

_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def is_compiling() -> bool:
    """Tell whether torch.compile or torch.export traces this call."""
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()  # torch < 2.3


def is_exporting() -> bool:
    """Tell whether torch.export traces this call; an older torch that cannot tell answers for torch.compile too."""
    return getattr(torch.compiler, 'is_exporting', is_compiling)()


def is_traced() -> bool:
    """Tell whether ``torch.jit.trace``, the older ONNX exporter or a torch.func transform handles this call."""
    return not is_compiling() and (torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None)


def is_recorded() -> bool:
    """Tell whether a compiler, a tracer, an exporter or a transform handles this call."""
    return is_compiling() or is_traced()


def opaque_to_compilers(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Have torch.compile call a function as it is, instead of compiling its operations. For use without gradients.

    Args:
        function (Callable): takes tensors and numbers, with annotations; changes no argument; returns a contiguous
            tensor of the shape and dtype of its first argument.
    """
    if not hasattr(torch.library, 'custom_op'):  # torch < 2.4
        return function
    operator = torch.library.custom_op(f'rmt_mm::{function.__name__}', function, mutates_args=())
    operator.register_fake(lambda first, *rest: torch.empty_like(first, memory_format=torch.contiguous_format))

    @functools.wraps(function)
    def call(*args):
        return operator(*args) if is_compiling() else function(*args)

    return call


def may_call_opaque() -> bool:
    """Tell whether this call may take a function of :func:`opaque_to_compilers`: eager or compiled, without gradients.

    Exported programs must hold torch's own operations only. The types that autocast chooses are unknown to a compiler.
    """
    if torch.is_grad_enabled():
        return False
    if is_compiling():
        return hasattr(torch.library, 'custom_op') and not is_exporting() and not torch.is_autocast_cpu_enabled()
    return not is_traced()


def may_cache() -> bool:
    """Tell whether a tensor made now holds values: it is not fake, traced, or wrapped by a mode."""
    return not is_recorded() and _get_current_dispatch_mode() is None


def is_plain(layer: nn.Module, kind: type) -> bool:
    """Tell whether ``layer`` is exactly of class ``kind`` and without hooks, so that a call runs its forward alone.

    Quantised, parametrised or wrapped layers are of another class. Hooks read or change inputs and outputs.
    """
    return (
        type(layer) is kind
        and not any(getattr(layer, name, None) for name in _HOOKS)
        and not (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
    )


def may_overwrite(layer: nn.Module, kind: type) -> bool:
    """Tell whether hooks, compilers and transforms permit changing the output of ``layer``, a ``kind``, in place.

    The caller must check whether autograd needs the output.
    """
    return is_plain(layer, kind) and not is_recorded()
