"""Files that no torch.save writes: pickles made by hand, in torch's zip format.

Run as a program, it tries all attacks on all readers, and prints a line of JSON for each: a successful attack may end
the process.
"""

import json
import pickle
import struct
import sys
import zipfile
from collections import namedtuple

Global = namedtuple('Global', 'module name')
Reduce = namedtuple('Reduce', 'function arguments')  # function(*arguments)
NewObj = namedtuple('NewObj', 'cls arguments')  # cls.__new__(cls, *arguments)
Build = namedtuple('Build', 'object state')  # object.__setstate__(state)
Storage = namedtuple('Storage', 'identity')
Put = namedtuple('Put', 'index object')
Get = namedtuple('Get', 'index')
Then = namedtuple('Then', 'parts')  # all parts, one after the other; the last one counts
Code = namedtuple('Code', 'operations')


def encode(value):
    """Return the opcodes of protocol 2 for a tree of the above and of plain values."""
    if isinstance(value, Global):
        return f'c{value.module}\n{value.name}\n'.encode()
    if isinstance(value, (Reduce, NewObj, Build)):
        return encode(value[0]) + encode(value[1]) + {Reduce: b'R', NewObj: b'\x81', Build: b'b'}[type(value)]
    if isinstance(value, Storage):
        return encode(value.identity) + b'Q'
    if isinstance(value, Put):
        return encode(value.object) + b'q' + bytes([value.index])
    if isinstance(value, Get):
        return b'h' + bytes([value.index])
    if isinstance(value, Then):  # in a list, from which the reader takes the part that it needs
        return encode(list(value.parts))
    if isinstance(value, Code):
        return value.operations
    if value is None or isinstance(value, bool):
        return {None: b'N', True: b'\x88', False: b'\x89'}[value]
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return b'J' + struct.pack('<i', value)
        digits = pickle.encode_long(value)
        return b'\x8a' + bytes([len(digits)]) + digits
    if isinstance(value, float):
        return b'G' + struct.pack('>d', value)
    if isinstance(value, str):
        text = value.encode()
        return b'X' + struct.pack('<I', len(text)) + text
    if isinstance(value, bytes):
        return encode(Reduce(Global('_codecs', 'encode'), (value.decode('latin1'), 'latin1')))
    if isinstance(value, tuple):
        return b'(' + b''.join(map(encode, value)) + b't'
    if isinstance(value, list):
        return b'](' + b''.join(map(encode, value)) + b'e'
    return b'}(' + b''.join(encode(part) for item in value.items() for part in item) + b'u'


def write(path, content, records=None, compression=zipfile.ZIP_STORED, pickled=None):
    """Write a file of torch's zip format."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('a/data.pkl', b'\x80\x02' + encode(content) + b'.' if pickled is None else pickled)
        archive.writestr('a/version', '3\n')
        archive.writestr('a/byteorder', 'little')
        for key, data in (records or {'0': DATA}).items():
            archive.writestr(f'a/data/{key}', data)
    return str(path)


DATA = b'12345678' * 4
ORDERED = Reduce(Global('collections', 'OrderedDict'), ())
HISTORY = Global('mmengine.logging.history_buffer', 'HistoryBuffer')
NDARRAY, DTYPE = Global('numpy', 'ndarray'), Global('numpy', 'dtype')
LAYOUT = Global('torch.serialization', '_get_layout')
INTERFACE = {'data': (4096, False), 'shape': (10,), 'typestr': '<f4', 'version': 3}


def dtype(kind='f8', state=(3, '<', None, None, None, -1, -1, 0)):
    made = Reduce(DTYPE, (kind, False, True))
    return Build(made, state) if state else made


def array(shape, data, kind=None, core='_core'):
    made = Reduce(Global(f'numpy.{core}.multiarray', '_reconstruct'), (NDARRAY, (0,), b'b'))
    return Build(made, (1, shape, kind or dtype(), False, data))


def scalar(kind, data, core='_core'):
    return Reduce(Global(f'numpy.{core}.multiarray', 'scalar'), (kind, data))


def tensor(numel=8, size=(8,), stride=(1,), offset=0, storage='FloatStorage', lead='storage', key='0'):
    kind = Global('torch', storage) if isinstance(storage, str) else storage
    storage = Storage((lead, kind, key, 'cpu', numel))
    return Reduce(Global('torch._utils', '_rebuild_tensor_v2'), (storage, offset, size, stride, False, ORDERED))


def history(**changes):
    state = dict(_log_history=array((1,), DATA[:8]), _count_history=array((1,), DATA[:8]), max_length=10)
    return Build(NewObj(HISTORY, ()), {**state, **changes})


BUFFER = Reduce(Global('builtins', 'bytearray'), ('A' * 64, 'latin1'))
OBJECTS = (3, '|', (dtype('O8', None), (1,)), None, None, 8, 1, 63)
# Attacks through what this package allows. torch without it refuses them all.
ALLOWED = dict(
    objects_by_subarray=Reduce(NDARRAY, ((1,), dtype('f8', OBJECTS), BUFFER)),
    objects_by_subarray_built=array((1,), b'A' * 8, dtype('f8', OBJECTS)),
    objects=array((1,), [1], dtype('O8', (3, '|', None, None, None, -1, -1, 63))),
    objects_by_fields=array((1,), b'A' * 8, dtype('V8', (3, '|', None, ('a',), {'a': (dtype('O8'), 0)}, 8, 1, 27))),
    objects_scalar=scalar(dtype('O8', (3, '|', None, None, None, -1, -1, 63)), b'A' * 8),
    fields_at_once=Reduce(DTYPE, ([('a', 'O')], False, True)),
    dates=array((1,), b'A' * 8, Reduce(DTYPE, ('M8', False, True))),
    heap=array((50000,), b'12345678'),
    heap_by_itemsize=array((1,), b'A' * 4, dtype('U1', (3, '<', None, None, None, 400000, 4, 8)))._replace(
        state=(1, (100000,), dtype('U1', (3, '<', None, None, None, 400000, 4, 8)), False, b'A' * 4)
    ),
    heap_by_later_itemsize=Then((array((1,), b'A' * 8, Put(1, dtype('f8'))), Build(Get(1), OBJECTS))),
    heap_scalar=scalar(dtype('S9999', (3, '|', None, None, None, 9999, 1, 0)), b'A'),
    unwritten=NewObj(NDARRAY, ((50000,),)),
    unwritten_call=Reduce(NDARRAY, ((50000,),)),
    strides=Reduce(NDARRAY, ((4,), dtype(), BUFFER, 32, (-8,))),
    zero_strides=Reduce(NDARRAY, ((2**40,), dtype(), BUFFER, 0, (0,))),
    second_state=Build(array((1,), b'A' * 8), (1, (1,), dtype(), False, b'B' * 8)),
    negative=array((-1,), b''),
    many_dimensions=array((1,) * 100, b'A' * 8),
    empty_but_large=array((0, 2**62), b''),
    overflowing=array((2**32, 2**32), b''),
    no_unicode=array((1,), b'\xff' * 4, dtype('U1', (3, '<', None, None, None, 4, 4, 8))),
    subtype=Reduce(Global('numpy._core.multiarray', '_reconstruct'), (HISTORY, (0,), b'b')),
    no_dtype=array((1,), b'A' * 8, 'f8'),
    interface=Reduce(HISTORY, ([Build(ORDERED, {'__array_interface__': INTERFACE})], [1])),
    interface_state=history(_log_history=Build(ORDERED, {'__array_interface__': INTERFACE})),
    history_of_strings=history(_log_history=array((1,), b'A\0\0\0', dtype('U1', (3, '<', None, None, None, 4, 4, 8)))),
    history_uneven=history(_log_history=array((0,), b'')),
    history_state=Build(NewObj(HISTORY, ()), [1]),
    history_length=history(max_length='10'),
    attribute=Reduce(Global('builtins', 'getattr'), (HISTORY, '__init__')),
    attribute_of_another=Reduce(Global('builtins', 'getattr'), (NDARRAY, 'mean')),
    attribute_of_torch=Reduce(Global('builtins', 'getattr'), (Global('torch', 'Tensor'), '__new__')),
    some_bytes=Reduce(Global('builtins', 'bytes'), (2**40,)),
    config=Reduce(Global('mmengine.config.config', 'ConfigDict'), ([(1, 2)],)),
)
# Tensors that torch itself reads and that are damaged or leak memory: the readers of this package refuse them.
INDICES = tensor(4, (2, 2), (2, 1), storage='LongStorage')
ROW = tensor(4, (2,), (1,), storage='LongStorage')
DEEP = b')' + b'\x85' * 10**6  # a tuple in a tuple in a tuple ...
TORCH = dict(
    sparse=Reduce(
        Global('torch._utils', '_rebuild_sparse_tensor'),
        (Reduce(LAYOUT, ('torch.sparse_csr',)), (tensor(4, (3,), storage='LongStorage'), ROW, tensor(8, (2,)), (2, 2))),
    ),
    coordinates=Reduce(
        Global('torch._utils', '_rebuild_sparse_tensor'),
        (Reduce(LAYOUT, ('torch.sparse_coo',)), (INDICES, tensor(8, (2,)), (2, 2))),
    ),
    unwritten_tensor=Reduce(Global('torch', 'FloatTensor'), (100000,)),
    unwritten_storage=Reduce(
        Global('torch._utils', '_rebuild_tensor_v2'),
        (Reduce(Global('torch.storage', 'TypedStorage'), (1000,)), 0, (1000,), (1,), False, ORDERED),
    ),
    attributes=Reduce(
        Global('torch._utils', '_rebuild_parameter_with_state'),
        (tensor(), False, ORDERED, {'__array_interface__': INTERFACE}),
    ),
    other_storage_size=tensor(100000, (100000,)),
    beyond_storage=tensor(8, (100000,)),
    negative_stride=tensor(8, (2,), (-1,)),
    negative_offset=tensor(8, (2,), (1,), -4),
    large_offset=tensor(8, (2,), (1,), 2**61),
    expanded=tensor(8, (2, 5, 2**20, 2**20), (0, 0, 0, 0)),
    deep_key=Code(b'}' + DEEP + b'Ns'),
    deep_in_set=Reduce(Global('builtins', 'set'), (Code(b'](' + DEEP + b'e'),)),
    deep_in_pairs=Reduce(Global('collections', 'OrderedDict'), (Code(b'](' + DEEP + b'N\x86e'),)),
    wide_key=Code(b'}' + b')q\x00' + b'h\x00h\x00\x86q\x00' * 100 + b'Ns'),
    nested_reference=Storage(('storage', Global('torch', 'FloatStorage'), Storage('0'), 'cpu', 8)),
    other_reference=Storage(('module', Global('os', 'system'), '', '')),
    reference_of_text=Storage('0'),
    size_of_text=tensor('8'),
    reference_of_bytes=tensor(100000, (100000,), lead=b'storage'),
    key_of_bytes=tensor(100000, (100000,), key=b'0'),
    storage_of_a_tensor=tensor(100000, (100000,), storage=tensor()),
    storage_of_a_dtype=tensor(100000, (100000,), storage=Reduce(DTYPE, ('f4', False, True))),
    untyped=tensor(100000, (100000,), storage='UntypedStorage'),
    untyped_by_its_name=tensor(100000, (100000,), storage=Global('torch.storage', 'UntypedStorage')),
    negative_size=tensor(-8),
    changed_tensor=Build(
        tensor(), (Storage(('storage', Global('torch', 'FloatStorage'), '0', 'cpu', 8)), 0, (64,), (1,))
    ),
    call_of_a_result=Reduce(Reduce(Global('collections', 'OrderedDict'), ()), ()),
    by_instance=Code(b'(cos\nsystem\nios\nsystem\n'),
    by_extension=Code(b'\x82\x01'),
    by_stack=Code(encode('os') + encode('system') + b'\x93'),
)


def ways_in():
    """Return the functions that read untrusted files, by name."""
    import torch

    from rmt_mm.checkpoints import force_safe_loading
    from rmt_mm.classification.label_map import load_label_map
    from rmt_mm.tools import cli
    from rmt_mm.tools.commands import rmt_to_mm as tool

    force_safe_loading()

    def convert(path):
        tool.convert(tool.parse_args([path, f'{path}-converted.pth']))

    def load(path):
        return str(torch.load(path, weights_only=True))  # a crash may wait until the values are used

    return dict(
        convert=convert, check=cli.check_checkpoint_file, label_map=lambda path: load_label_map(path, 10), torch=load
    )


def main(folder):
    ways = ways_in()
    for name, attack in {**ALLOWED, **TORCH}.items():
        for way, read in ways.items():
            if way == 'torch' and name in TORCH:
                continue
            # The attack is a whole label map, or a value in an otherwise ordinary checkpoint.
            content = (
                attack
                if way == 'label_map'
                else {
                    'state_dict': {'backbone.stages.0.0.attn.qkv.weight': attack if name in TORCH else tensor()},
                    'message_hub': attack,
                }
            )
            path = write(f'{folder}/{name}-{way}.pt', content)
            print(json.dumps([name, way]), end='', flush=True)
            try:
                read(path)
                outcome = ['nothing', '']
            except BaseException as error:  # the test checks the type of any error
                outcome = [type(error).__name__, str(error)]
            print('\t' + json.dumps(outcome), flush=True)


if __name__ == '__main__':
    main(sys.argv[1])
