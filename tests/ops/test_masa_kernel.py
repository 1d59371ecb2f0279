"""The C++ kernel of MaSA against its formula in double."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rmt_mm.ops import build, masa
from rmt_mm.ops.tables import manhattan_bias, rotary_phases

from support.kernels import ERRORS, FOLDERS, error, run_cases, run_wide_cases
from support.scripts import run_script

SIZES = [(1, 1), (1, 7), (7, 1), (7, 7), (14, 14), (5, 33), (2, 97), (17, 50), (400, 3), (3, 400)]


pytestmark = pytest.mark.usefixtures('library')


def decay(heads):
    return tuple(-0.29 / (head + 1) ** 2 for head in range(heads))


def rotate(x, phases):
    product = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.view_as_complex(phases)
    return torch.view_as_real(product).flatten(-2)


def by_formula(q, k, v, log_decay, dim, phases=None, rotated=torch.float64):
    """Attend by explicit products and softmax, in double; queries and keys are rounded to a dtype once rotated."""
    q, k, v = (t.double() for t in (q, k, v))
    if phases is not None:
        q, k = (rotate(t, phases.double()).to(rotated).double() for t in (q, k))
    if dim == 1:
        return by_formula(*(t.transpose(1, 2) for t in (q, k, v)), log_decay, 2).transpose(1, 2)
    batch, height, width, heads, head_dim = q.shape
    # Lines are maps of one row.
    shape = (batch, height * width) if dim == 0 else (batch * height, width)
    q, k, v = (t.reshape(*shape, heads, head_dim).transpose(1, 2) for t in (q, k, v))
    bias = manhattan_bias(log_decay, height if dim == 0 else 1, width, torch.device('cpu'), torch.float64)
    out = (q @ k.transpose(-1, -2) / head_dim**0.5 + bias).softmax(-1) @ v
    return out.transpose(1, 2).reshape(batch, height, width, heads, head_dim)


def by_kernel(q, k, v, log_decay, dim, phases=None):
    if dim == 0:
        return masa.attend_map(q, k, v, log_decay, phases)
    return masa.attend_lines(q, k, v, log_decay, dim, phases)


def projection(batch, height, width, heads, head_dim, dtype=torch.float32, seed=0):
    """q, k and v as views of one tensor, logits of several units."""
    torch.manual_seed(seed)
    return torch.randn(batch, height, width, 3, heads, head_dim).mul_(1.5).to(dtype).requires_grad_()


def compare(tensors, leaf, log_decay, dim, phases=None, slack=1):
    found = by_kernel(*tensors, log_decay, dim, phases)
    # The kernel rounds what it has rotated where the processor multiplies pairs of bfloat16.
    roundings = {torch.float64, found.dtype} if found.dtype == torch.bfloat16 else {torch.float64}
    expecteds = [by_formula(*tensors, log_decay, dim, phases, rounding) for rounding in roundings]
    expected = min(expecteds, key=lambda expected: error(found, expected))
    grad = torch.randn_like(found)
    value_error, grad_error = ERRORS[found.dtype]
    assert found.dtype == tensors[0].dtype and found.is_contiguous()
    assert error(found, expected) < value_error * slack
    (grads,) = torch.autograd.grad(found, leaf, grad)
    (expected_grads,) = torch.autograd.grad(expected, leaf, grad.double())
    assert error(grads, expected_grads) < grad_error * slack


@pytest.mark.parametrize('dim', [0, 1, 2])
@pytest.mark.parametrize('size', SIZES)
def test_sizes(size, dim):
    if dim == 0 and size[0] * size[1] > 1000:
        size = (size[0] // 2, size[1] // 2 + 1)
    leaf = projection(2, *size, 2, 16)
    compare(leaf.unbind(3), leaf, decay(2), dim)


@pytest.mark.parametrize('dim', [0, 1, 2])
@pytest.mark.parametrize('size', SIZES)
def test_sizes_in_bfloat16(size, dim):
    """Numbers of keys and of queries are odd and even: they are paired where the processor multiplies pairs."""
    if dim == 0 and size[0] * size[1] > 1000:
        size = (size[0] // 2, size[1] // 2 + 1)
    leaf = projection(2, *size, 2, 24, torch.bfloat16)
    compare(leaf.unbind(3), leaf, decay(2), dim)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('head_dim', [8, 16, 24, 32, 64, 72])
@pytest.mark.parametrize('dim', [0, 1, 2])
def test_head_dims_dtypes_and_rotation(dim, head_dim, dtype):
    leaf = projection(1, 9, 23, 1, head_dim, dtype)
    phases = rotary_phases(9, 23, head_dim, torch.device('cpu'))
    compare(leaf.unbind(3), leaf, decay(1), dim, phases)


@pytest.mark.parametrize('batch', [1, 3, 8])
@pytest.mark.parametrize('dim', [0, 1, 2])
def test_batches_of_channels_first_and_mixed_strides(batch, dim):
    torch.manual_seed(0)
    leaf = torch.randn(3, batch, 2, 8, 6, 5, requires_grad=True)  # (heads, head_dim, height, width)
    q, k, v = leaf.permute(0, 1, 4, 5, 2, 3)
    compare((q, k.contiguous(), v.flip(1)), leaf, decay(2), dim)


def test_gradients_of_an_expanded_gradient_and_of_rows_then_columns():
    leaf = projection(2, 6, 11, 2, 8)
    q, k, v = leaf.unbind(3)
    found, expected = (f(q, k, f(q, k, v, decay(2), 2), decay(2), 1).sum() for f in (by_kernel, by_formula))
    grads = [torch.autograd.grad(loss, leaf)[0] for loss in (found, expected)]
    assert error(grads[0], grads[1].double()) < 1e-5


def test_logits_far_apart():
    """The largest logit rises by hundreds from block to block of keys, and falls. Rounding grows with it."""
    leaf = projection(1, 1, 400, 2, 8)
    slope = torch.linspace(-1, 1, 400).view(1, 1, 400, 1, 1) * 40
    q, k, v = leaf.unbind(3)
    for sign in (1, -1):
        compare((q + 8, k + sign * slope, v), leaf, decay(2), 2, slack=20)


@pytest.mark.parametrize('dim', [0, 1, 2])
def test_threads_change_nothing(dim):
    leaf = projection(2, 20, 31, 3, 16)
    grad = torch.randn(2, 20, 31, 3, 16)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        out = by_kernel(*leaf.unbind(3), decay(3), dim)
        results.append((out, *torch.autograd.grad(out, leaf, grad)))
    torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


@pytest.mark.parametrize('dim', [0, 2])
@pytest.mark.parametrize('which', [0, 1, 2])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_nan_and_infinity_propagate(dtype, which, value, dim):
    tensors = [t.detach().clone() for t in projection(1, 3, 40, 2, 8, dtype).unbind(3)]
    tensors[which][0, 1, 20, 0, 3] = value
    found, expected = by_kernel(*tensors, decay(2), dim), by_formula(*tensors, decay(2), dim)
    assert not expected.isfinite().all()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())
    finite = expected.isfinite()
    assert error(found[finite], expected[finite]) < ERRORS[dtype][0]


def test_nan_with_a_payload_and_rounding_in_bfloat16():
    bits = torch.tensor([0x7F81, 0x7FFF, 0x7F81 - 2**15], dtype=torch.int16)
    v = bits.view(torch.bfloat16).repeat_interleave(8).view(1, 3, 1, 1, 8)
    assert masa.attend_lines(torch.zeros_like(v), torch.zeros_like(v), v, (-0.1,), 2).isnan().all()


def test_python_threads():
    tensors = [t.detach() for t in projection(1, 12, 40, 2, 16).unbind(3)]
    expected = by_kernel(*tensors, decay(2), 0)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: by_kernel(*tensors, decay(2), 0), range(40)))
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize('dim', [0, 1])
def test_opcheck(dim):
    if not hasattr(torch.library, 'opcheck'):
        pytest.skip('torch has no opcheck')
    masa.why_not(*3 * [torch.zeros(1, 1, 1, 1, 8)])
    leaf = projection(1, 4, 5, 2, 8)
    tensors = [t.detach().requires_grad_() for t in leaf.unbind(3)]
    phases = rotary_phases(4, 5, 8, torch.device('cpu'))
    torch.library.opcheck(torch.ops.rmt_mm.masa.default, (*tensors, decay(2), dim, phases))


def test_compile():
    leaf = projection(1, 6, 7, 2, 8)
    compiled = torch.compile(lambda *args: by_kernel(*args).sin(), fullgraph=True, backend='aot_eager')
    grads = []
    for f in (compiled, lambda *args: by_kernel(*args).sin()):
        grads += torch.autograd.grad(f(*leaf.unbind(3), decay(2), 2).sum(), leaf)
    assert torch.equal(*grads)


def test_second_derivatives_are_refused():
    leaf = projection(1, 2, 3, 1, 8)
    with pytest.raises(RuntimeError, match='second derivatives'):
        torch.autograd.grad(by_kernel(*leaf.unbind(3), decay(1), 2).sum(), leaf, create_graph=True)


def test_empty():
    out = masa.attend_map(*3 * [torch.zeros(0, 4, 4, 2, 8)], decay(2))
    assert out.shape == (0, 4, 4, 2, 8)


@pytest.mark.parametrize(
    'tensors, words',
    [
        (3 * [torch.zeros(1, 1, 1, 1, 12)], 'multiple of 8'),
        (3 * [torch.zeros(1, 1, 1, 1, 8, dtype=torch.float64)], 'float64'),
        (3 * [torch.zeros(1, 1, 1, 1, 8, device='meta')], 'meta'),
    ],
)
def test_why_not(tensors, words):
    assert words in masa.why_not(*tensors)


def test_unbuilt_says_how_to_build(monkeypatch, tmp_path):
    monkeypatch.setenv('RMT_MM_CACHE', str(tmp_path))
    monkeypatch.setattr(build, '_loaded', False)
    tensors = 3 * [torch.zeros(1, 1, 1, 1, 8)]
    assert build.BUILD_COMMAND in masa.why_not(*tensors)
    with pytest.raises(RuntimeError, match='not built'):
        masa.attend_map(*tensors, (-0.1,))


def test_build_failures_are_one_sentence(tmp_path):
    (tmp_path / 'script.py').write_text("import runpy\nrunpy.run_module('rmt_mm.build_ops', run_name='__main__')")
    for compiler, words in (('no-such-compiler', 'no such program'), ('false', 'failed: see ')):
        env = {**os.environ, 'RMT_MM_CACHE': str(tmp_path), 'CXX': compiler}
        done = run_script(tmp_path / 'script.py', env=env)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith('rmt-mm: the C++ operators were not built: ') and words in last


# Other processes: each compares a few cases on its own.
CASES = """
import sys, torch
from test_masa_kernel import compare, decay, projection
for dim in (0, 1, 2):
    for head_dim in (8, 16, 24):
        for dtype in (torch.float32, torch.bfloat16):
            leaf = projection(1, 9, 60, 2, head_dim, dtype)
            compare(leaf.unbind(3), leaf, decay(2), dim)
"""


@pytest.mark.parametrize('capability', ['default', 'avx2'])
def test_processors(capability):
    run_cases(CASES, ATEN_CPU_CAPABILITY=capability)


def test_fork(tmp_path):
    (tmp_path / 'script.py').write_text(f"""
import os, sys, torch
sys.path[:0] = {FOLDERS}
from test_masa_kernel import compare, decay, projection
leaf = projection(1, 9, 60, 2, 16)
compare(leaf.unbind(3), leaf, decay(2), 0)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    compare(leaf.unbind(3), leaf, decay(2), 0)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
""")
    done = run_script(tmp_path / 'script.py')
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_wide_vectors_without_avx512(tmp_path):
    run_wide_cases(CASES, tmp_path)
