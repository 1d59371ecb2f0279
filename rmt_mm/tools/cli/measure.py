"""Build an implementation, run a step of it, and measure the machine's rate: shared by the tools that measure."""

import time
from typing import Any, Callable, NamedTuple, Tuple, Union

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from ...arch import resolve_arch
from ...backbone import RMT
from ...reference import PlainRMT

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
OURS = ('rmt_mm', 'deploy', 'compile', 'deploy-compile')
# RMT with every stage attending to its whole map, or along lines.
FORMS = ('whole', 'decomposed')


class Case(NamedTuple):
    """The input and the mode of a measurement."""

    arch: Union[str, dict]  # size of RMT; other backbones have their own
    shape: Tuple[int, int]  # height and width of the images
    batch: int  # images
    mode: str  # 'infer', or 'train': forward and backward
    device: str  # 'cpu' or 'cuda'
    dtype: str  # 'fp32', or what autocast computes in: 'bf16', 'fp16'


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()


def build(impl: str, case: Case) -> Any:
    """Build an implementation on its device, with the same random weights in every call.

    Args:
        impl (str): 'reference', one of :data:`OURS` or :data:`FORMS`, a backbone of torchvision with its classifier
            left out ('torchvision.swin_t') and without stochastic depth, or a backbone of a registry with its default
            arguments ('mmdet.SwinTransformer').
        case (Case): the input and the mode.
    """
    torch.manual_seed(0)
    scope, _, name = impl.rpartition('.')
    model: Any
    if impl == 'reference':
        model = PlainRMT(resolve_arch(case.arch))
    elif impl in OURS:
        model = RMT(case.arch)
    elif impl in FORMS:
        depths = resolve_arch(case.arch).depths
        model = RMT(case.arch, arch_options=dict(decomposed=(impl == 'decomposed',) * len(depths)))
    elif scope == 'torchvision':
        import torchvision

        model = getattr(torchvision.models, name)().features
        for module in model.modules():
            if isinstance(module, torchvision.ops.StochasticDepth):
                module.p = 0.0
    else:
        if scope:
            init_default_scope(scope)
        model = MODELS.build(dict(type=name))
    model.train(case.mode == 'train')  # not every backbone's train() returns the model
    model.to(case.device)
    if 'deploy' in impl:
        model.switch_to_deploy()
    return torch.compile(model) if 'compile' in impl else model


def make_step(impl: str, case: Case) -> Callable[[], None]:
    """Return a function that runs an implementation once: a forward pass, or a training step without the update."""
    model = build(impl, case)
    x = torch.randn(case.batch, 3, *case.shape, device=case.device)

    def step() -> None:
        with torch.autocast(case.device.split(':')[0], DTYPES[case.dtype], enabled=case.dtype != 'fp32'):
            outs = model(x)
        outs = outs if isinstance(outs, (tuple, list)) else (outs,)
        if case.mode == 'train':
            sum(out.float().square().mean() for out in outs).backward()
            model.zero_grad(set_to_none=True)
        synchronize(case.device)

    def infer() -> None:
        with torch.inference_mode():
            step()

    return step if case.mode == 'train' else infer


def matrix_rate(
    device: str, dtype: str, size: int, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> float:
    """Return the machine's rate of a product of two square matrices, in GFLOP/s (2 for a multiply-add)."""
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    times = []
    for _ in range(8):
        start = time.perf_counter()
        product(a, b)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times) / 1e9
