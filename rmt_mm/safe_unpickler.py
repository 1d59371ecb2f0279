"""torch's list of what ``torch.load(weights_only=True)`` may make, and an unpickler for the torches that lack it.

torch 2.5 and later hold files to such a list. torch 2.1 to 2.3 have none, and torch 2.4 does not find on it what a file
names as Python 2 did, as torch.save does. :func:`install` gives these the unpickler below.
"""

import operator
import pickle
import tarfile
import types
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Sequence, Set

import torch
from torch.serialization import StorageType

_listed: List[Callable] = []  # the list, for torch < 2.4


def safe_globals() -> List[Callable]:
    """Return torch's list of types and functions that a file may ask for."""
    if hasattr(torch.serialization, 'get_safe_globals'):
        return list(torch.serialization.get_safe_globals())
    return list(_listed)


def set_safe_globals(entries: Sequence[Callable]) -> None:
    """Put just these on torch's list."""
    if hasattr(torch.serialization, 'clear_safe_globals'):
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(entries))
    else:
        _listed[:] = entries


def by_name(entries: Sequence[Callable]) -> Dict[str, Callable]:
    """Return entries of the list by the names that a pickle has for them; of two of one name, the later."""
    return {
        entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}': entry for entry in entries
    }


def full_name(module: str, name: str) -> str:
    """Return the full name of what a pickle asks for. torch writes the names of Python 2 to this day."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f'{module}.{name}'


def install() -> None:
    """Have ``torch.load(weights_only=True)`` hold files to the list, where torch does not do so itself."""
    if not hasattr(torch.serialization, 'safe_globals'):  # torch < 2.5
        torch._weights_only_unpickler.Unpickler = Unpickler


def refuse_programs() -> None:
    """Have every ``torch.load`` refuse TorchScript programs and tar files, for a process that reads weights alone.

    torch before 2.6 hands them to readers that can be made to run programs, whatever ``weights_only`` says
    (CVE-2025-32434).
    """
    if torch.__version__ < (2, 6):
        torch.serialization._is_torchscript_zip = _refuse_torchscript
        torch.serialization.tarfile = types.SimpleNamespace(
            open=_open_no_tar, TarError=tarfile.TarError, PAX_FORMAT=tarfile.PAX_FORMAT
        )


def _refuse_torchscript(archive: Any) -> bool:
    _require('constants.pkl' not in archive.get_all_records(), 'a TorchScript program')
    return False


def _open_no_tar(**_: Any) -> None:
    raise tarfile.TarError  # torch goes on to the formats that came later, and finds none of them


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise pickle.UnpicklingError(f'the file holds {what}')


def _require_flat(key: Any) -> None:
    """Refuse tuples of tuples as keys: to compute their hash can take the whole stack, or years."""
    nested = isinstance(key, tuple) and any(isinstance(part, tuple) for part in key)
    _require(not nested, 'tuples of tuples as keys')


def _encode(text: Any, encoding: Any) -> bytes:
    """Stand for ``_codecs.encode``, as which bytes are pickled."""
    _require(type(text) is str and encoding == 'latin1', 'bytes in another encoding than latin1')
    return text.encode('latin1')


def _set(items: Any) -> set:
    _require(type(items) is list, 'a set of something else')
    for item in items:
        _require_flat(item)
    return set(items)


def _ordered_dict(items: Any = ()) -> OrderedDict:
    _require(all(type(pair) in (list, tuple) and len(pair) == 2 for pair in items), 'an OrderedDict of something else')
    for key, _ in items:
        _require_flat(key)
    return OrderedDict(items)


def _counter(counts: Any) -> Counter:
    _require(type(counts) is dict, 'a Counter of something else')
    return Counter(counts)


# What makes keys of its arguments.
_OF_KEYS = {'builtins.set': _set, 'collections.Counter': _counter, 'collections.OrderedDict': _ordered_dict}


class _Opcodes(dict):
    def __missing__(self, code: int) -> Callable:
        raise pickle.UnpicklingError(f'the file holds {bytes([code])!r} in a pickle, which torch.save does not write')


class _PlainUnpickler(pickle._Unpickler):
    """Take the operations that torch.save writes, and no keys but plain ones."""

    dispatch = _Opcodes(
        (code, pickle._Unpickler.dispatch[code])
        for code in b''.join(
            getattr(pickle, name)
            for name in (
                'PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE '
                'SHORT_BINSTRING EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 '
                'BINGET LONG_BINGET BINPUT LONG_BINPUT'
            ).split()
        )
    )
    for name in 'GLOBAL REDUCE NEWOBJ BUILD APPEND APPENDS SETITEM SETITEMS BINPERSID'.split():
        dispatch[getattr(pickle, name)[0]] = operator.methodcaller(f'load_{name.lower()}')
    del name

    def load(self) -> Any:
        try:
            return super().load()
        except LookupError as error:  # it takes more from its stack than is there
            raise pickle.UnpicklingError('the file holds a pickle that is damaged') from error

    def read_name(self) -> str:
        return full_name(*(self.readline()[:-1].decode('utf-8') for _ in range(2)))

    def load_append(self) -> None:
        self.extend([self.stack.pop()])

    def load_appends(self) -> None:
        self.extend(self.pop_mark())

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def extend(self, items: list) -> None:
        _require(type(self.stack[-1]) is list, 'items of something else than a list')
        self.stack[-1].extend(items)

    def set_items(self, items: list) -> None:
        for key in items[::2]:
            _require_flat(key)


class _Asked:
    """What a file asks for, and of which nothing is made."""

    def __init__(self, name: str = '') -> None:
        self.name = name


class Inspector(_PlainUnpickler):
    """Read what a pickle asks for, and make nothing of it.

    Args:
        file (BinaryIO): is left behind the pickle.
        sizes (dict[str, int] | None): bytes of each storage's data, by its key. None if they are not known.
        limit (int): bytes that the data of all can have.

    Attributes:
        names (set[str]): full names of types and functions.
    """

    def __init__(self, file: BinaryIO, sizes: Optional[Dict[str, int]], limit: int) -> None:
        super().__init__(file)
        self.names: Set[str] = set()
        self._sizes = sizes
        self._limit = limit
        self._seen: Set[str] = set()

    def load_global(self) -> None:
        name = self.read_name()
        self.names.add(name)
        self.append(_Asked(name))

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = getattr(function, 'name', None)
        if name in _OF_KEYS:
            _OF_KEYS[name](*arguments)
        self.append(_Asked())

    def load_newobj(self) -> None:
        del self.stack[-2:]
        self.append(_Asked())

    def load_build(self) -> None:
        del self.stack[-1:]

    def extend(self, items: list) -> None:
        if type(self.stack[-1]) is list:  # what else is filled is refused by its name, or when it is read
            self.stack[-1].extend(items)

    def load_binpersid(self) -> None:
        identity = self.stack.pop()
        self.append(_Asked())
        # torch takes bytes for text here, and a tensor for the type of a storage: whatever is made is refused.
        _require(type(identity) is tuple and identity and type(identity[0]) is str, 'another reference')
        if identity[0] != 'storage':
            return  # refused when it is read
        _, kind, key, _, count = identity[:5]
        _require(type(key) is str and type(count) is int and type(kind) is _Asked, 'a storage without its size')
        module, _, name = kind.name.rpartition('.')
        _require(module in ('torch', 'torch.cuda', 'torch.storage'), 'a storage of another type')
        size = count * (1 if name == 'UntypedStorage' else StorageType(name).dtype.itemsize)
        # Most torches go by the size that the pickle gives, and read what lies behind a record that is shorter.
        _require(
            size >= 0 and (self._sizes is None or size == self._sizes.get(key, 0)), f'no {size} bytes of a storage'
        )
        if key not in self._seen:
            self._seen.add(key)
            self._limit -= size
            _require(self._limit >= 0, f'no {size} bytes of a storage')


class Unpickler(_PlainUnpickler):
    """Make tensors, plain values, and what is on torch's list. torch derives its own reader from this class.

    Nothing is looked up or imported by a name out of a file. Of what it makes, a file can call what has one of the
    names that are allowed, and change lists, dicts, and objects of types on the list.
    """

    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(file, **options)
        listed = by_name(safe_globals())
        self._allowed = {
            **listed,
            # What torch allows whatever is on the list. A storage class itself could be called, for memory that nobody
            # has written.
            **{
                name: StorageType(name.rpartition('.')[2]) if name.endswith('Storage') else entry
                for name, entry in torch._weights_only_unpickler._get_allowed_globals().items()
                if not name.startswith('torch.storage.')
            },
            # What newer torches allow.
            **{str(entry): entry for entry in vars(torch).values() if isinstance(entry, torch.dtype)},
            **_OF_KEYS,
            'torch.device': torch.device,
            'builtins.complex': complex,
            '_codecs.encode': _encode,
        }
        self._callable = {id(entry) for entry in self._allowed.values() if callable(entry)}
        self._types = {OrderedDict, Counter, *(entry for entry in listed.values() if isinstance(entry, type))}

    def load_global(self) -> None:
        name = self.read_name()
        _require(name in self._allowed, f'an object of type {name}')
        self.append(self._allowed[name])

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        _require(id(function) in self._callable and type(arguments) is tuple, 'a call of something else')
        self.stack[-1] = function(*arguments)

    def load_newobj(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        _require(isinstance(cls, type) and cls in self._types and type(arguments) is tuple, 'an object of another type')
        self.append(cls.__new__(cls, *arguments))

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        _require(type(made) in self._types, f'a state for a {type(made).__name__}')
        if hasattr(made, '__setstate__'):
            made.__setstate__(state)
        else:
            _require(type(state) is dict, f'another state than attributes for a {type(made).__name__}')
            vars(made).update(state)

    def set_items(self, items: list) -> None:
        super().set_items(items)
        made = self.stack[-1]
        _require(isinstance(made, dict) and type(made) in (dict, *self._types), 'items of something else than a dict')
        made.update(zip(items[::2], items[1::2]))

    def load_binpersid(self) -> None:
        identity = self.stack[-1]
        _require(
            type(identity) is tuple
            and tuple(map(type, identity[:5])) == (str, StorageType, str, str, int)
            and identity[0] == 'storage'
            and identity[4] >= 0,
            'a reference to something else than a storage',
        )
        self.stack[-1] = self.persistent_load(identity)
