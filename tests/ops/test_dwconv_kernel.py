"""The C++ kernel of the depthwise convolutions against plain torch in double."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from rmt_mm.ops import build
from rmt_mm.ops.depthwise import dwconv, why_not

from support.kernels import ERRORS, error, run_cases, run_wide_cases

pytestmark = pytest.mark.usefixtures('library')

# Strips of rows, blocks and groups of channels, tiles of columns: whole ones, one more, one less, less than one.
SHAPES = [
    (1, 1, 1, 8),
    (2, 7, 5, 24),
    (1, 3, 40, 32),
    (3, 14, 14, 40),
    (1, 40, 3, 264),
    (1, 33, 37, 72),
    (2, 2, 6, 520),
    (1, 16, 350, 96),
]


def case(shape, kernel, dtype=torch.float32, seed=0):
    """Return a map, weight and bias that need gradients; a fifth of the map is far from zero."""
    torch.manual_seed(seed)
    x = torch.randn(shape) * torch.rand(shape).gt(0.8).mul(4).add(1)
    tensors = x.to(dtype), torch.randn(shape[3], 1, kernel, kernel), torch.randn(shape[3])
    return [t.requires_grad_() for t in tensors]


def plain(x, weight, bias, residual, gelu):
    """Convolve by torch."""
    x = (F.gelu(x) if gelu else x).permute(0, 3, 1, 2)
    out = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    return (out + x if residual else out).permute(0, 2, 3, 1)


def compare(tensors, residual, gelu):
    x = tensors[0]
    out = dwconv(*tensors, residual, gelu)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = plain(*exact, residual, gelu)
    value_error, grad_error = ERRORS[x.dtype]
    assert out.dtype == x.dtype and out.is_contiguous() and error(out, expected) < value_error
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, exact, grad.double())
    for tensor, ours, theirs in zip(tensors, *grads):
        assert ours.dtype == tensor.dtype and error(ours, theirs) < grad_error


@pytest.mark.parametrize('gelu', [False, True])
@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('kernel', [3, 5])
@pytest.mark.parametrize('shape', SHAPES)
def test_values_and_gradients(shape, kernel, residual, gelu):
    compare(case(shape, kernel), residual, gelu)


@pytest.mark.parametrize('gelu', [False, True])
@pytest.mark.parametrize('kernel', [3, 5])
def test_bf16(kernel, gelu):
    compare(case((2, 9, 13, 72), kernel, torch.bfloat16), True, gelu)


def test_parameters_in_bf16():
    compare([t.detach().bfloat16().requires_grad_() for t in case((2, 9, 13, 16), 3)], True, True)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gelu_is_exact_from_end_to_end(dtype):
    """Convolve by the kernel of the identity: GELU itself, and its slope, over all magnitudes and at their ends."""
    x = torch.cat([torch.linspace(-14, 14, 16001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38, 100, -100])])
    x = torch.cat([x, x.new_zeros(-len(x) % 8)]).view(1, 1, -1, 8).to(dtype)
    weight = torch.zeros(8, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    found, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = dwconv(found, weight, torch.zeros(8), gelu=True), F.gelu(exact)
    rounding = 0 if dtype == torch.float32 else 2**-8  # at most, relative
    torch.testing.assert_close(out.double(), expected, rtol=1e-6 + rounding * 1.1, atol=1e-7)
    (slope,) = torch.autograd.grad(out.sum(), found)
    (expected_slope,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=1e-6 + rounding * 1.1, atol=5e-7 + rounding * 0.01)


def test_other_strides_and_an_expanded_gradient():
    x, weight, bias = case((2, 16, 6, 5), 3)  # (B, C, H, W)
    leaf, exact = x.detach().clone().requires_grad_(), x.detach().double().requires_grad_()
    weight, bias = (torch.randn(16, 1, 3, 3), torch.randn(16))
    out = dwconv(leaf.permute(0, 2, 3, 1), weight, bias, True, True)
    expected = plain(exact.permute(0, 2, 3, 1), weight.double(), bias.double(), True, True)
    grads = [torch.autograd.grad(y.sum(), t)[0] for y, t in ((out, leaf), (expected, exact))]
    assert error(out, expected) < 1e-6 and error(*grads) < 1e-5
    flipped = dwconv(leaf.permute(0, 2, 3, 1).flip(1), weight.flip(2), bias, True, True)
    assert error(flipped.flip(1), expected) < 1e-6


def read_in_place(x):
    weight, bias = torch.randn(24, 1, 3, 3), torch.randn(24)
    copied = x.clone(memory_format=torch.contiguous_format).requires_grad_()
    leaf = x.detach().requires_grad_()
    out, expected = (dwconv(t, weight, bias, True, True) for t in (leaf, copied))
    assert torch.equal(out, expected)
    assert torch.equal(*(torch.autograd.grad(y.sum(), t)[0] for y, t in ((out, leaf), (expected, copied))))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('size', [(6, 5), (6, 1), (1, 5), (1, 1)])
def test_a_slice_of_channels_is_read_where_it_is(size, dtype):
    """As the values in a projection are."""
    read_in_place(torch.randn(2, *size, 3 * 24).to(dtype)[..., 24:48])


def test_the_stride_of_a_single_column_is_any_number():
    read_in_place(torch.randn(2 * 6, 24).as_strided((2, 6, 1, 24), (144, 24, 7, 1)))


def test_threads_change_nothing():
    tensors = case((2, 40, 31, 72), 5)
    grad, results = torch.randn(2, 40, 31, 72), []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        out = dwconv(*tensors, True, True)
        results.append((out, *torch.autograd.grad(out, tensors, grad)))
    torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


def test_threads_of_python():
    tensors = case((1, 20, 20, 40), 3)

    def compute(_):
        out = dwconv(*tensors, False, True)
        return (out, *torch.autograd.grad(out.sum(), tensors))

    expected = compute(0)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(compute, range(32)):
            assert all(torch.equal(a, b) for a, b in zip(result, expected))


@pytest.mark.parametrize('gelu', [False, True])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_nan_and_infinity_propagate(dtype, value, gelu):
    x, weight, bias = (t.detach() for t in case((1, 9, 9, 8), 3, dtype))
    x[0, 4, 4, 3] = value
    out, expected = dwconv(x, weight, bias, True, gelu).float(), plain(x.float(), weight, bias, True, gelu)
    finite = expected.isfinite()
    assert not finite.all() and torch.equal(out.isfinite(), finite)
    tolerance = dict(rtol=1e-2, atol=1e-2) if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(out[finite], expected[finite], **tolerance)


def test_autocast_computes_in_its_dtype():
    x, weight, bias = case((1, 9, 9, 16), 3)
    with torch.autocast('cpu', torch.bfloat16):
        out = dwconv(x, weight, bias, True, True)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, dwconv(x.bfloat16(), weight, bias, True, True))
    out.sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in (x, weight, bias))


def test_nothing_is_printed():
    """Torch's own warnings from C++ go to the process's output, a line at every call."""
    run_cases(
        """
import torch
from test_dwconv_kernel import case, dwconv
from rmt_mm import RMT
with torch.autocast('cpu', torch.bfloat16):
    dwconv(*case((1, 9, 9, 16), 3), True, True).sum().backward()
    sum(out.float().sum() for out in RMT('tiny')(torch.zeros(2, 3, 32, 32))).backward()
""",
        silent=True,
    )


def test_an_empty_batch():
    x, weight, bias = torch.zeros(0, 4, 4, 8, requires_grad=True), *case((1, 1, 1, 8), 3)[1:]
    dwconv(x, weight, bias).sum().backward()
    assert x.grad.shape == x.shape and not weight.grad.any() and not bias.grad.any()


def test_second_derivatives_are_refused():
    tensors = case((1, 4, 4, 8), 3)
    with pytest.raises(RuntimeError, match='second derivatives'):
        torch.autograd.grad(dwconv(*tensors).sum(), tensors, create_graph=True)


@pytest.mark.parametrize(
    'tensors, words',
    [
        ((torch.zeros(1, 2, 2, 12), torch.zeros(12, 1, 3, 3), torch.zeros(12)), 'multiple of 8'),
        ((torch.zeros(1, 2, 2, 8).double(), torch.zeros(8, 1, 3, 3), torch.zeros(8)), 'float64'),
        ((torch.zeros(1, 2, 2, 8), torch.zeros(8, 1, 7, 7), torch.zeros(8)), '3x3 or 5x5'),
        ((torch.zeros(1, 2, 2, 8), torch.zeros(8, 1, 3, 3), None), 'with bias'),
        ((torch.zeros(1, 2, 2, 8, device='meta'), torch.zeros(8, 1, 3, 3), torch.zeros(8)), 'on meta'),
    ],
)
def test_why_not(tensors, words):
    assert words in why_not(*tensors)


@pytest.mark.parametrize(
    'shapes, words',
    [
        (((2, 2, 8), (8, 1, 3, 3), (8,)), '3 dimensions'),
        (((1, 2, 2, 8), (16, 1, 3, 3), (8,)), 'weight must be'),
        (((1, 2, 2, 8), (8, 1, 3, 5), (8,)), 'weight must be'),
        (((1, 2, 2, 8), (8, 1, 3, 3), (1,)), 'bias must be'),
    ],
)
def test_wrong_shapes_are_named(shapes, words):
    with pytest.raises(RuntimeError, match=words):
        dwconv(*(torch.zeros(shape) for shape in shapes))


def test_unbuilt_says_how_to_build(monkeypatch, tmp_path):
    monkeypatch.setenv('RMT_MM_CACHE', str(tmp_path))
    monkeypatch.setattr(build, '_loaded', False)
    tensors = torch.zeros(1, 1, 1, 8), torch.zeros(8, 1, 3, 3), torch.zeros(8)
    assert build.BUILD_COMMAND in why_not(*tensors)
    with pytest.raises(RuntimeError, match='not built'):
        dwconv(*tensors)


CASES = """
import torch
from test_dwconv_kernel import SHAPES, case, compare
for shape in SHAPES:
    for kernel in (3, 5):
        compare(case(shape, kernel), True, True)
    compare(case(shape, 3, torch.bfloat16), True, True)
"""


@pytest.mark.parametrize('capability', ['default', 'avx2'])
def test_processors(capability):
    run_cases(CASES, ATEN_CPU_CAPABILITY=capability)


@pytest.mark.slow
def test_wide_vectors_without_avx512(tmp_path):
    run_wide_cases(CASES, tmp_path)
