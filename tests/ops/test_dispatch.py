"""Kernels are chosen in one place, which says why, and can be pinned."""

import pytest
import torch
from torch import nn

from rmt_mm import RMT, ops
from rmt_mm.errors import UsageError
from rmt_mm.ops import dispatch

from support import ROOT
from support.archs import SMALL_ARCH
from support.scripts import run_script


def chosen(*args, operator='linear'):
    with ops.record() as choices:
        getattr(ops, operator)(*args)
    [choice] = [choice for choice in choices if choice.operator == operator]
    return choice


def test_every_kernel_is_registered_and_plain_refuses_nothing():
    assert set(dispatch._KERNELS) == {(name, kernel) for name, kernels in ops.PRIORITY.items() for kernel in kernels}
    for operator, kernels in ops.PRIORITY.items():
        plain = dispatch._KERNELS[operator, kernels[-1]]
        assert kernels[-1] == 'plain' and plain.cannot is plain.should_not is dispatch.never


@torch.no_grad()
def test_a_choice_has_its_reasons():
    layer, x = nn.Linear(4, 4), torch.rand(1, 2, 3, 4)
    with torch.enable_grad():
        assert 'gradients of a convolution' in chosen(layer, x).reasons[0][1]
    assert chosen(layer, x) == ('linear', 'convolution', ())
    operator, kernel, [(refused, reason)] = chosen(layer.double(), x.double())
    assert (kernel, refused) == ('plain', 'convolution') and 'float64' in reason
    layer.float().register_forward_hook(lambda *args: None)
    assert 'hooks' in chosen(layer, x).reasons[0][1]


@torch.no_grad()
def test_pins_are_for_the_context_and_nest():
    layer, x = nn.Linear(4, 4), torch.rand(1, 2, 3, 4)
    with ops.use(linear='plain'):
        assert chosen(layer, x).kernel == 'plain'
        with ops.use(linear='convolution'):
            assert chosen(layer, x).kernel == 'convolution'
        assert chosen(layer, x).kernel == 'plain'
    assert chosen(layer, x).kernel == 'convolution'
    with pytest.raises(ZeroDivisionError), ops.use('plain'):
        raise ZeroDivisionError
    assert chosen(layer, x).kernel == 'convolution'


def test_a_pinned_kernel_that_cannot_says_why():
    with ops.use(linear='convolution'), pytest.raises(UsageError, match='linear=convolution is pinned.*float64'):
        ops.linear(nn.Linear(4, 4).double(), torch.rand(1, 2, 3, 4).double())


def test_a_pinned_kernel_takes_calls_of_which_another_is_better():
    q = torch.rand(1, 2, 3, 4, 8)
    tables = ops.PositionTables((-0.1,) * 4, 2, 3, 8, q.device)
    with ops.use(attend_map='by_row'):
        assert chosen(q, q, q, tables, operator='attend_map').kernel == 'by_row'


def test_a_bias_that_is_large_is_not_held():
    """float64, which the compiled kernel does not take: it holds no bias."""
    for size, kernel in (((4, 6), 'plain'), ((64, 65), 'by_row')):
        q = torch.rand(1, *size, 1, 8, dtype=torch.float64)
        tables = ops.PositionTables((-0.1,), *size, 8, q.device)
        choice = chosen(q, q, q, tables, operator='attend_map')
        assert choice.kernel == kernel
        before = ops.PRIORITY['attend_map'][: ops.PRIORITY['attend_map'].index(kernel)]
        assert tuple(name for name, _ in choice.reasons) == tuple(before) and len(before) > 1
        assert ('small enough to be held' in str(choice.reasons)) == (kernel == 'plain')


def test_tables_are_of_the_dtype_that_is_asked_for():
    tables = ops.PositionTables((-0.1,), 3, 4, 8, torch.device('cpu'))
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        for table in (tables.line(2, dtype), tables.line(1, dtype), tables.whole(dtype), tables.by_row(dtype)):
            assert table.dtype == dtype


@pytest.mark.parametrize(
    'pins, words',
    [
        (dict(attention='plain'), "no operator 'attention'.*attend_map"),
        (dict(ffn='fast'), "ffn has no kernel 'fast'.*layers"),
        (dict(every='fast'), "'fast'"),
        (dict(attend='masa', attend_map='by_row'), 'attend=masa computes lines and maps itself'),
    ],
)
def test_wrong_pins(pins, words):
    with pytest.raises(UsageError, match=words), ops.use(**pins):
        pass


def test_a_group_of_operators():
    plain = dict(attend='plain', attend_lines='plain', attend_map='plain')
    assert dispatch.resolve_pins(dict(attend='plain')) == plain
    assert dispatch.resolve_pins(dict(attend='by_row')) == dict(attend='plain', attend_map='by_row')
    assert dispatch.resolve_pins(dict(attend='masa')) == dict(attend='masa')
    assert dispatch.resolve_pins({}, 'plain') == dict.fromkeys(ops.PRIORITY, 'plain')


def test_the_environment_variable(tmp_path):
    assert dispatch.read_pins('') == {}
    pins = dict(attend='plain', attend_map='by_row', ffn='plain')
    assert dispatch.read_pins('attend_map=by_row, ffn=plain') == pins
    assert dispatch.read_pins('plain,attend_map=by_row')['attend_map'] == 'by_row'
    script = tmp_path / 'script.py'
    script.write_text('import rmt_mm.ops.dispatch as d; print(sorted(d._PINNED.items()))')
    for value, words in (
        ('ffn=plain', "[('ffn', 'plain')]"),
        ('ffn=fast', 'the environment variable RMT_MM_OPS=ffn=fast'),
    ):
        done = run_script(script, env={'PATH': '', 'RMT_MM_OPS': value, 'PYTHONPATH': str(ROOT)})
        assert words in done.stdout + done.stderr


def test_the_whole_model_in_plain_torch_and_its_explanation():
    model, x = RMT(SMALL_ARCH).eval(), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        with ops.use('plain'), ops.record() as choices:
            outs = model(x)
    assert {choice.kernel for choice in choices} == {'plain'}
    for out, wanted in zip(outs, expected):
        torch.testing.assert_close(out, wanted)
    text = ops.explain(model, x)
    assert 'convolution' in text and 'not masa' in text and 'the kernel takes head_dim' in text
