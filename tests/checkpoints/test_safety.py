"""Files of strangers: nothing of them is executed, no memory is misread, and each mistake is one sentence."""

import contextlib
import functools
import http.server
import io
import json
import pickle
import random
import re
import shlex
import socket
import struct
import sys
import threading
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner.checkpoint import _load_checkpoint

from rmt_mm.arch import ARCHS
from rmt_mm.checkpoints import read_checkpoint
from rmt_mm.checkpoints.files import local_copy, write_checkpoint
from rmt_mm.checkpoints.official_model import parse_checkpoint
from rmt_mm.checkpoints.safe.types import STAND_INS
from rmt_mm.checkpoints.safe.unpickler import safe_globals, set_safe_globals
from rmt_mm.checkpoints.state_dicts import pick_state_dict
from rmt_mm.classification.label_map import MAX_NUMBERS, load_label_map, save_label_map
from rmt_mm.errors import CheckpointError, RMTError, TokenLabelError, printable
from rmt_mm.tools.cli.options import describe

from support import forged
from support.official_files import NANO, nano_state_dict
from support.scripts import run_script


@pytest.fixture(autouse=True)
def nano(monkeypatch):
    monkeypatch.setitem(ARCHS, 'nano', NANO)


# Attacks on memory, in a process of their own: one that succeeds ends it.


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
    done = run_script(forged.__file__, tmp_path_factory.mktemp('forged'))
    found = {}
    for line in done.stdout.splitlines():
        if not line.startswith('['):  # onedl-mmengine prints what it could not import
            continue
        attack, _, outcome = line.partition('\t')
        found[tuple(json.loads(attack))] = json.loads(outcome or '["the end of the process", ""]')
    assert done.returncode == 0, (done.returncode, list(found.items())[-1:], done.stderr[-500:])
    return found


REFUSALS = dict(
    convert='CheckpointError', check='CheckpointError', label_map='TokenLabelError', torch='UnpicklingError'
)


@pytest.mark.parametrize('name', [*forged.ALLOWED, *forged.TORCH])
def test_forged_files_are_refused_in_every_way_in(name, outcomes):
    for way, refusal in REFUSALS.items():
        if way == 'torch' and name in forged.TORCH:
            continue
        kind, text = outcomes[name, way]
        assert kind == refusal, (way, kind, text)
        if way != 'torch':
            assert '\n' not in text and f'{name}-{way}.pt' in text


def test_the_forgery_is_well_made(forced, tmp_path):
    """What is refused above is refused for what is wrong with it: the same files without it load."""
    good = dict(
        array=forged.array((2,), b'A' * 16),
        old=forged.array((2,), b'A' * 16, core='core'),
        scalar=forged.scalar(forged.dtype(), b'A' * 8),
        buffer=forged.history(),
        tensor=forged.tensor(),
    )
    path = forged.write(tmp_path / 'good.pth', good)
    for content in (read_checkpoint(path), torch.load(path, weights_only=True)):
        assert content['array'].tolist() == content['old'].tolist() == [content['scalar']] * 2
        assert type(content['buffer']) is HistoryBuffer and content['tensor'].shape == (8,)


def test_statistics_of_a_file_do_not_reach_the_class(forced, tmp_path):
    another = forged.Reduce(forged.Global('builtins', 'getattr'), (forged.HISTORY, 'max'))
    path = forged.write(tmp_path / 'a.pth', dict(a=forged.history(statistics_methods=dict(mean=another, new=another))))
    torch.load(path, weights_only=True)
    assert HistoryBuffer([1.0, 2.0], [1, 1]).statistics('mean') == 1.5
    assert 'new' not in HistoryBuffer._statistics_methods


# What is allowed.


def test_no_type_of_numpy_or_mmengine_is_on_the_list():
    listed = [entry[0] if isinstance(entry, tuple) else entry for entry in safe_globals()]
    raw = [
        HistoryBuffer,
        ConfigDict,
        np.ndarray,
        np.dtype,
        getattr,
        bytes,
        np.empty(0).__reduce__()[0],
        np.float64(0).__reduce__()[0],
        *(type(np.dtype(kind)) for kind in 'd f i l b O U'.split()),
    ]
    assert not [entry for entry in listed if any(entry is one for one in raw)]


def test_the_list_holds_what_mmengine_writes_and_no_more():
    names = {f'{entry.__module__}.{entry.__qualname__}' for entry in STAND_INS}
    # torch 2.5 asks for the name in another way.
    assert names == {f'{entry.__module__}.{entry.__name__}' for entry in STAND_INS}
    assert names == {
        'mmengine.logging.history_buffer.HistoryBuffer',
        'mmengine.config.config.ConfigDict',
        'builtins.getattr',
        'builtins.bytes',
        'numpy.ndarray',
        'numpy.dtype',
        'numpy.core.multiarray._reconstruct',
        'numpy._core.multiarray._reconstruct',
        'numpy.core.multiarray.scalar',
        'numpy._core.multiarray.scalar',
    }


def as_other_numpy(path, old):
    """Have a file's arrays named as NumPy 1 names them, or as NumPy 2 does."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in records if name.endswith('data.pkl'))
    wanted = b'cnumpy.core.' if old else b'cnumpy._core.'
    records[pickled] = re.sub(rb'cnumpy\._?core\.', wanted, records[pickled])
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in records.items():
            archive.writestr(name, data)


KINDS = 'f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1 c8 c16'.split()
PLAIN = {
    **{f'scalar {kind}': np.dtype(kind).type(1) for kind in KINDS},
    'scalar str': np.str_('mAP'),
    'empty str': np.str_(''),
    'scalar bytes': np.bytes_(b'mAP'),
    **{kind: np.arange(6).reshape(2, 3).astype(kind) for kind in (*KINDS, '>f4', '>i8', '<u2', 'U3', '>U3', 'S2')},
    'Fortran order': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'steps': np.arange(8)[::-2],
    'no dimension': np.array(3.0),
    'str without dimension': np.array('mAP'),
    'empty': np.zeros((0, 3)),
    'empty of str': np.array([], 'U3'),
}


@pytest.mark.parametrize('old', [False, True], ids=['NumPy 2', 'NumPy 1'])
def test_all_that_mmengine_writes_loads(old, forced, tmp_path):
    hub = MessageHub('written')
    for name, value in PLAIN.items():
        hub.update_info(name, value)
    for value in (1.0, 2.0):
        hub.update_scalar('loss', value)
    hub.update_scalar('lr', np.float32(1e-3))
    hub._log_scalars['nothing'], hub._resumed_keys['nothing'] = HistoryBuffer(), True
    meta = dict(dataset_meta=ConfigDict(classes=('a',), roi=ConfigDict(names=['b'])), seed=np.int64(1))
    torch.save(dict(meta=meta, state_dict={}, message_hub=hub.state_dict()), tmp_path / 'own.pth')
    as_other_numpy(tmp_path / 'own.pth', old)

    for read in (read_checkpoint, functools.partial(torch.load, weights_only=True), _load_checkpoint):
        content = read(str(tmp_path / 'own.pth'))
        assert content['meta'] == dict(dataset_meta=dict(classes=('a',), roi=dict(names=['b'])), seed=1)
        for name, value in PLAIN.items():
            loaded = content['message_hub']['runtime_info'][name]
            assert isinstance(loaded, type(value)) and loaded.dtype.newbyteorder('=') == value.dtype.newbyteorder('=')
            np.testing.assert_array_equal(loaded, value)
        resumed = MessageHub(f'resumed {old} {read}')
        resumed.load_state_dict(content['message_hub'])
        assert all(type(resumed.get_info(name)) is type(value) for name, value in PLAIN.items())
        loss = resumed.get_scalar('loss')
        assert type(loss) is HistoryBuffer and loss.data[0].tolist() == [1.0, 2.0] and loss.statistics('mean') == 1.5
        loss.update(6.0)
        assert loss.mean() == 3.0 and loss.max_length == 1000000
        resumed.get_scalar('nothing').update(1.0)
        # What was loaded is saved again as NumPy's and mmengine's own.
        torch.save(content, tmp_path / 'again.pth')
        with pytest.MonkeyPatch.context() as patch:  # by pickle itself
            patch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
            again = torch.load(tmp_path / 'again.pth', weights_only=False)['message_hub']['runtime_info']
        assert all(type(again[name]) is type(value) for name, value in PLAIN.items())


@contextlib.contextmanager
def listed_too(*types):
    """torch.serialization.safe_globals, which torch has since 2.5."""
    before = safe_globals()
    set_safe_globals([*before, *types])
    yield
    set_safe_globals(before)


def test_the_list_of_a_program_is_left_as_it_was(tmp_path):
    """Even where it has NumPy's own types, which a forged file would use."""
    before = safe_globals()
    with listed_too(np.ndarray, np.dtype, type(np.dtype('f8')), OrderedDict):
        listed = set(safe_globals())
        path = forged.write(tmp_path / 'a.pth', dict(a=forged.dtype('f8', forged.OBJECTS)))
        with pytest.raises(CheckpointError, match='not plain'):
            read_checkpoint(path)
        torch.save(dict(a=np.arange(3)), tmp_path / 'b.pth')
        assert read_checkpoint(str(tmp_path / 'b.pth'))['a'].tolist() == [0, 1, 2]
        assert set(safe_globals()) == listed
    assert set(safe_globals()) == set(before)


class Settings(dict):
    """Stands for the config classes that training code keeps in its checkpoints."""


def test_types_that_the_program_has_allowed_are_read(tmp_path):
    torch.save(dict(a=np.float64(1), b=torch.zeros(2), c=Settings(a=1)), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='Settings'):
        read_checkpoint(str(tmp_path / 'a.pth'))
    torch.save(dict(c=Settings()), tmp_path / 'b.pth')
    with listed_too(Settings):
        assert type(read_checkpoint(str(tmp_path / 'b.pth'))['c']) is Settings


class Listed(list):
    """Of a kind that no placeholder can stand for: torch fills lists alone."""


def test_what_is_advised_works(tmp_path):
    """The advice to leave a type out is given only where the file can be read without it."""
    for content, advised in ((Settings(lr=1), True), (Listed([1]), False)):
        torch.save(dict(state_dict={}, config=content), tmp_path / 'a.pth')
        with pytest.raises(CheckpointError, match=type(content).__name__) as error:
            read_checkpoint(str(tmp_path / 'a.pth'))
        assert bool(error.value.remedy) == ('--allow-type' in describe(error.value)) == advised
        if advised:
            read_checkpoint(str(tmp_path / 'a.pth'), allow_types=error.value.facts['allow_type'])


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_storages_of_both_formats(zipped, device, tmp_path):
    shared = torch.arange(6.0)
    tensors = [
        shared[1:3],
        shared.view(2, 3),
        torch.zeros(0),
        torch.ones(2, dtype=torch.bfloat16),
        torch.tensor([True]),
    ]
    torch.save(dict(a=tensors, b=b'bytes', c={1, 'd'}), tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    content = read_checkpoint(str(tmp_path / 'a.pth'), device)
    assert content['b'] == b'bytes' and content['c'] == {1, 'd'}
    for tensor, expected in zip(content['a'], tensors):
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert tensor.is_meta or torch.equal(tensor, expected)


# Names out of files.


@pytest.mark.parametrize(
    'name', ['torch.x;id>/tmp/owned', 'a.$(id)', 'a.b c', 'a.\x1b]0;x\x07', 'a.\u202egnp', 'a.b-c', 'x.' + 'y' * 5000]
)
def test_names_of_types_reach_no_shell_and_no_terminal(name, tmp_path):
    module, _, attribute = name.rpartition('.')
    pickled = b'\x80\x02c' + module.encode() + b'\n' + attribute.encode() + b'\n.'
    path = forged.write(tmp_path / 'a.pth', None, pickled=pickled)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert describe(error.value).isprintable() and len(describe(error.value)) < 12000
    if not all(part.isidentifier() for part in name.split('.')):
        assert '--allow-type' not in describe(error.value)


def test_facts_are_quoted_in_commands():
    command = describe(CheckpointError('x.', 'allow_type', allow_type=['a;id', 'b $c'])).split('`')[1]
    assert [word for word in shlex.split(command) if word not in ('SRC', 'DST')][2:] == [
        '--allow-type',
        'a;id',
        '--allow-type',
        'b $c',
    ]


def test_no_error_carries_control_characters():
    error = RMTError('name \x1b[31mred\x07 \u202e \ud800, two\nlines')
    assert str(error) == 'name \\x1b[31mred\\x07 \\u202e \\ud800, two\nlines'
    assert str(error.at('a\x1b')).startswith('a\\x1b: name')
    assert printable('a' * 300, 100) == 'a' * 100 + '... (200 characters more)'
    again = pickle.loads(pickle.dumps(CheckpointError('x', 'force', a=1)))
    assert (str(again), again.remedy, again.facts) == ('x', 'force', dict(a=1))


@pytest.mark.parametrize('where', ['tensor', 'group', 'meta', 'dataset_meta', 'long'])
def test_names_of_tensors_and_meta_are_escaped(where, tmp_path):
    state_dict = nano_state_dict('dense')
    content = dict(model=state_dict, meta={})
    if where == 'tensor':
        state_dict['layers.0.\x1b[2J\u202e'] = torch.zeros(1)
    elif where == 'long':
        state_dict['x' * 10**6] = torch.zeros(1)
    elif where == 'group':
        content['\x1b[2J'] = 1
    elif where == 'meta':
        content['meta']['rmt_mm'] = dict(weights='\x1b[2J', arch='\x1b')
    else:
        content['meta']['dataset_meta'] = {'classes': ('\x1b',), '\x1b[2J': {1, 2}}
    try:
        lines = parse_checkpoint(content).report()
    except CheckpointError as error:
        lines = [str(error)]
    assert all(line.isprintable() and len(line) < 1000 for line in lines), lines


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=[1]),
        dict(rmt_mm=[1]),
        dict(rmt_mm=dict(weights=[1])),
        [1],
        dict(CLASSES=torch.zeros(2)),
        dict(dataset_meta={1: 2, 'classes': {1, 2}, 'a': {(1, 2): 3}, (1,): 2}),
    ],
)
def test_odd_meta_is_left_out(meta, tmp_path):
    model = parse_checkpoint(dict(model=nano_state_dict('dense'), meta=meta))
    model.report()
    model.to_official()
    write_checkpoint(model.to_ours(), str(tmp_path / 'a.safetensors'))


def lines_run(function, *args):
    """Count the lines of this package that a call runs."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        count += event == 'line'
        return trace if 'rmt_mm' in frame.f_code.co_filename else None

    sys.settrace(trace)
    try:
        function(*args)
    finally:
        sys.settrace(None)
    return count


def test_wrappers_are_taken_off_at_once():
    def state_dict(times):
        return {'module.' * times + name: torch.zeros(1) for name in ('a', 'b', 'module.c')}

    assert pick_state_dict(state_dict(3))[1].keys() == {'a', 'b', 'module.c'}
    assert lines_run(pick_state_dict, state_dict(500)) == lines_run(pick_state_dict, state_dict(1))
    assert pick_state_dict({'module.' * 80000 + 'a': torch.zeros(1)})[1].keys() == {'a'}
    assert pick_state_dict({'modul': torch.zeros(1), 'module.a': torch.zeros(1)})[1].keys() == {
        'modul',
        'module.a',
    }


@pytest.mark.parametrize(
    'name',
    [
        'layers.0.blocks.{}.retention.q_proj.weight',
        'layers.{}.blocks.0.gamma_1',
        'backbone.stages.0.{}.attn.qkv.weight',
    ],
)
def test_numbers_of_thousands_of_digits(name):
    state_dict = nano_state_dict('dense') if name.startswith('layers') else {}
    with pytest.raises(CheckpointError) as error:
        parse_checkpoint({**state_dict, name.format('9' * 5000): torch.zeros(8, 8)})
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize('name', ['a\0b.c', '', 'Namespace', 'a..b', 'a.b;c', 'a.b\n', '..', 'a.\u0430'])
def test_only_full_names_are_allowed(name, tmp_path):
    torch.save(dict(a=1), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='full name') as error:
        read_checkpoint(str(tmp_path / 'a.pth'), allow_types=[name])
    assert str(error.value).isprintable()


# Sizes.


def test_a_zip_file_that_unpacks_to_far_more_is_not_read(tmp_path):
    zeros = bytes(80 * 2**20)
    path = forged.write(tmp_path / 'a.pth', dict(a=forged.tensor(len(zeros) // 4)), {'0': zeros}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match='would unpack to 838.* bytes, more than 4 times its size and 64 MiB'):
        read_checkpoint(path)
    with pytest.raises(TokenLabelError, match='would unpack to'):
        load_label_map(path, 10)


def test_compressed_files_of_ordinary_size_are_read(tmp_path):
    path = forged.write(tmp_path / 'a.pth', dict(a=forged.tensor(2**20)), {'0': bytes(2**22)}, zipfile.ZIP_DEFLATED)
    assert read_checkpoint(path)['a'].shape == (8,)


def npz(path, header, data=b'', compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        text = header.encode().ljust(117) + b'\n'
        archive.writestr('label_map.npy', b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data)
    return str(path)


@pytest.mark.parametrize(
    'header',
    [
        "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 5, 2000, 2000), }",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 5, 200000000, 2000000), }",
        "{'descr': '|S100000000', 'fortran_order': False, 'shape': (2, 5, 4, 4), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2, 5, 4, 4), }",
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2, 5, 4, 4), }",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (2, -5, 4, 4), }",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 5, 4, 4), }",
        "{'descr': '<U3', 'fortran_order': False, 'shape': (1, ), }",
        '(' * 100,
    ],
)
def test_headers_of_npz_are_checked_before_their_data(header, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(np.lib.format, 'read_array', lambda file, **_: read.append(file) or np.zeros((2, 5, 4)))
    path = npz(tmp_path / 'a.npz', header)
    if '(2, 5, 4, 4)' in header and '<f2' in header:
        monkeypatch.undo()
    with pytest.raises(TokenLabelError, match='a.npz') as error:
        load_label_map(path, 10)
    assert not read and '\n' not in str(error.value)


def test_objects_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / 'a.npz', label_map=np.array([[print]], dtype=object))
    with pytest.raises(TokenLabelError, match='object'):
        load_label_map(str(tmp_path / 'a.npz'), 10)


def test_label_maps_of_too_many_numbers(tmp_path):
    torch.save(torch.zeros(1).expand(2, 1, 4096, MAX_NUMBERS // 8192 + 1), tmp_path / 'a.pt')
    with pytest.raises(TokenLabelError, match=f'at most {MAX_NUMBERS}'):
        load_label_map(str(tmp_path / 'a.pt'), 10)


@pytest.mark.parametrize('kind', ['<f2', '>f2', '<f8', 'u1', 'i8', 'u2'])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_label_maps_of_any_kind_of_number(kind, order, tmp_path):
    array = np.asarray(np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2) % 9, kind, order)
    np.savez_compressed(tmp_path / 'a.npz', array)
    loaded = load_label_map(str(tmp_path / 'a.npz'), 10)
    assert loaded.dtype == torch.float32 and torch.equal(loaded, torch.from_numpy(array.astype('f4')))


def safetensors(path, header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)
    return str(path)


TENSOR = dict(dtype='F32', shape=[2], data_offsets=[0, 8])


@pytest.mark.parametrize('text', ['[' * 100000, '{"a":' * 100000, '9' * 5000, '"\\ud800"', '\x1b', ''])
def test_metadata_of_safetensors_may_be_anything(text, tmp_path):
    path = safetensors(
        tmp_path / 'a.safetensors',
        {'__metadata__': {'k': text}, 'a': TENSOR, 'meta:x': TENSOR | {'data_offsets': [8, 16]}},
        bytes(16),
    )
    content = read_checkpoint(path)
    assert content['meta'].keys() == {'k'} and content['state_dict'].keys() == {'a', 'meta:x'}


@pytest.mark.parametrize(
    'content',
    [
        struct.pack('<Q', 2**63) + b'{}',
        struct.pack('<Q', 2**40) + b'{}',
        struct.pack('<Q', 2) + b'{}' + bytes(9),
        struct.pack('<Q', 200000) + b'{"a":' * 40000,
        b'\0' * 8 + b'{',
        struct.pack('<Q', 77) + json.dumps({'a': {**TENSOR, 'shape': [2**62]}}).encode().ljust(77),
    ],
)
def test_damaged_headers_of_safetensors(content, tmp_path):
    (tmp_path / 'a.safetensors').write_bytes(content)
    with pytest.raises(CheckpointError, match='a.safetensors'):
        read_checkpoint(str(tmp_path / 'a.safetensors'))


def test_safetensors_under_another_name(tmp_path):
    path = safetensors(tmp_path / 'a.safetensors', {'a': TENSOR}, bytes(8))
    assert read_checkpoint(str((tmp_path / 'a.safetensors').rename(tmp_path / 'a.pth')))['state_dict'].keys() == {'a'}
    # 640 bytes of header begin as a pickle does.
    path = safetensors(tmp_path / 'a.safetensors', json.dumps({'a': TENSOR}).encode().ljust(640), bytes(8))
    assert read_checkpoint(path)['state_dict'].keys() == {'a'}


def test_two_records_of_one_name(tmp_path):
    for names in (('a/data.pkl', 'a/data.pkl'), ('a/data.pkl', 'a/DATA.pkl'), ('a/data.pkl', 'b/data.pkl')):
        with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
            for name in names:
                archive.writestr(name, pickle.dumps({}, 2))
        with pytest.raises(CheckpointError, match='two records'):
            read_checkpoint(str(tmp_path / 'a.pth'))


# Damage anywhere: one sentence, or what is left loads.


def mutated(data, generator):
    data = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 8))):
        data = data or bytearray(b'x')
        place = generator.randrange(len(data))
        how = generator.randrange(4)
        if how == 0:
            data[place] = generator.randrange(256)
        elif how == 1:
            data[place] ^= 1 << generator.randrange(8)
        elif how == 2:
            del data[place : place + generator.choice((1, 4, 100))]
        else:
            data[place:place] = generator.randbytes(generator.choice((1, 4)))
    return bytes(data) or b'x'


def rezipped(data, generator):
    """Change a pickle within a zip file whose check sums are right."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(changed, 'w') as new:
        for name in archive.namelist():
            content = archive.read(name)
            new.writestr(name, mutated(content, generator) if name.endswith(('data.pkl', '.npy')) else content)
    return changed.getvalue()


def small_files(folder):
    hub = MessageHub(f'fuzz {folder}')
    hub.update_scalar('loss', 1.0)
    content = dict(
        state_dict={'backbone.stages.0.0.attn.qkv.weight': torch.zeros(6, 2)},
        optimizer={},
        meta=dict(epoch=1, dataset_meta=dict(classes=('a',))),
        message_hub=hub.state_dict(),
    )
    torch.save(content, folder / 'new.pth')
    torch.save(content, folder / 'old.pth', _use_new_zipfile_serialization=False)
    write_checkpoint(dict(state_dict=content['state_dict'], meta=content['meta']), str(folder / 'a.safetensors'))
    label_map = torch.stack((torch.randn(3, 2, 2), torch.randint(10, (3, 2, 2)).float()))
    save_label_map(label_map, str(folder / 'a.npz'))
    save_label_map(label_map, str(folder / 'a.pt'))
    return sorted(folder.iterdir())


def fuzz(folder, seed, rounds):
    generator = random.Random(seed)
    files = {path: path.read_bytes() for path in small_files(folder)}
    loaded = 0
    for path, data in files.items():
        zipped = zipfile.is_zipfile(path)
        for i in range(rounds):
            changed = rezipped(data, generator) if zipped and i % 2 else mutated(data, generator)
            path.write_bytes(changed)
            try:
                if path.suffix in ('.npz', '.pt'):
                    load_label_map(str(path), 10)
                else:
                    content = read_checkpoint(str(path), ('cpu', 'meta')[i % 3 == 0])
                    parse_checkpoint(content)
                loaded += 1
            except (CheckpointError, TokenLabelError) as error:
                assert '\n' not in str(error) and str(error).isprintable() and len(str(error)) < 2000
    return loaded


def test_damage_is_one_sentence(tmp_path):
    fuzz(tmp_path, seed=0, rounds=60)


# Downloads.


class Server(http.server.BaseHTTPRequestHandler):
    files = {}  # path -> content; bytes promised

    def do_GET(self):
        content, promised = self.files.get(self.path, (None, 0))
        self.send_response(404 if content is None else 200)
        self.send_header('Content-Length', str(promised))
        self.end_headers()
        self.wfile.write(content or b'')

    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path, monkeypatch):
    """Serve files; return the address, the files and the folder of the cache."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    monkeypatch.setattr(Server, 'files', {})
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}', Server.files, tmp_path / 'hub/checkpoints'
        server.shutdown()


def test_downloads_of_one_name_are_two(web):
    address, files, _ = web
    for i, path in enumerate(('/a/latest.pth', '/b/latest.pth', '/latest.pth?v=1', '/latest.pth?v=2')):
        files[path] = (bytes([i]) * 9, 9)
    copies = [local_copy(address + path) for path in files]
    assert [open(copy, 'rb').read() for copy in copies] == [content for content, _ in files.values()]
    assert all(copy.endswith('.pth') and 'latest' in copy for copy in copies)
    expected = dict(files)
    files.clear()  # the cache answers from now on
    assert [local_copy(address + path) for path in expected] == copies
    files['/x/..%2f..%2fevil.safetensors'] = (b'x', 1)
    assert local_copy(f'{address}/x/..%2f..%2fevil.safetensors#top').startswith(f'{web[2]}/')


def test_downloads_that_fail_leave_nothing(web):
    address, files, cache = web
    files['/half.pth'] = (b'half', 8)
    with socket.socket() as closed:  # nobody listens
        closed.bind(('127.0.0.1', 0))
        nobody = f'http://127.0.0.1:{closed.getsockname()[1]}/a.pth'
        for url, words in (
            (f'{address}/half.pth', '4 of 8 bytes'),
            (f'{address}/missing.pth', '404'),
            (nobody, 'cannot be downloaded'),
            ('http://', 'cannot be downloaded'),
            ('https://[::1', 'cannot be downloaded'),
            ('http://a b/\x1b', 'cannot be downloaded'),
        ):
            with pytest.raises(CheckpointError, match=words) as error:
                local_copy(url)
            assert '\n' not in str(error.value) and str(error.value).isprintable()
    assert not cache.exists() or not list(cache.iterdir())
    files['/half.pth'] = (b'half', 4)
    assert open(local_copy(f'{address}/half.pth'), 'rb').read() == b'half'
