"""Tell when operations may take the shortcuts of eager execution: in place, by a faster product, recomputed later.

A compiler, a tracer or a functional transform records operations instead of running them, and needs the plain form. A
forward hook may keep an output, which must not be overwritten after the hook has run.
"""

import torch
from torch import nn
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
