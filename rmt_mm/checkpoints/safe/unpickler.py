"""Unpickle checkpoints with an allow-list on every torch, and inspect them before that.

``torch.load(weights_only=True)`` of torch 2.5 and later creates only objects of types on a list. torch 2.1 to 2.3 have
no such list. torch 2.4 has one, but does not find the Python 2 names on it that torch.save writes. While this package
reads a file, these versions use the unpickler of this module.
"""

import operator
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Sequence, Set

import torch
from torch.serialization import StorageType

from .require import require

_safe_globals: List[Callable] = []  # the list, for torch < 2.4


def safe_globals() -> List[Callable]:
    """Return torch's list of the types and functions that a file may name."""
    if hasattr(torch.serialization, 'get_safe_globals'):
        return list(torch.serialization.get_safe_globals())
    return list(_safe_globals)


def set_safe_globals(entries: Sequence[Callable]) -> None:
    """Put just these on torch's list."""
    if hasattr(torch.serialization, 'clear_safe_globals'):
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(entries))
    else:
        _safe_globals[:] = entries


def by_name(entries: Sequence[Callable]) -> Dict[str, Callable]:
    """Return the entries of a list by their names in a pickle; of two with one name, the later."""
    return {
        entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}': entry for entry in entries
    }


def full_name(module: str, name: str) -> str:
    """Return the Python 3 name of an object that a pickle names; torch.save writes the names of Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f'{module}.{name}'


def _require_flat(key: Any) -> None:
    """Refuse tuples of tuples as keys: computing their hash can overflow the stack, or take years."""
    nested = isinstance(key, tuple) and any(isinstance(part, tuple) for part in key)
    require(not nested, 'tuples of tuples as keys')


def _encode(text: Any, encoding: Any) -> bytes:
    """Stand for ``_codecs.encode``, a call of which pickles bytes."""
    require(type(text) is str and encoding == 'latin1', 'bytes in another encoding than latin1')
    return text.encode('latin1')


def _set(items: Any) -> set:
    require(type(items) is list, 'a set of something else')
    for item in items:
        _require_flat(item)
    return set(items)


def _ordered_dict(items: Any = ()) -> OrderedDict:
    require(all(type(pair) in (list, tuple) and len(pair) == 2 for pair in items), 'an OrderedDict of something else')
    for key, _ in items:
        _require_flat(key)
    return OrderedDict(items)


def _counter(counts: Any) -> Counter:
    require(type(counts) is dict, 'a Counter of something else')
    return Counter(counts)


# What stands for the types that use their arguments as keys, by the name that a pickle has for them.
_KEY_CHECKERS = {'builtins.set': _set, 'collections.Counter': _counter, 'collections.OrderedDict': _ordered_dict}


class _Opcodes(dict):
    def __missing__(self, code: int) -> Callable:
        raise pickle.UnpicklingError(f'the file holds {bytes([code])!r} in a pickle, which torch.save does not write')


class _PlainUnpickler(pickle._Unpickler):
    """Accept only the operations that torch.save writes, and only plain keys."""

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
        except LookupError as error:  # it pops from an empty stack
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
        require(type(self.stack[-1]) is list, 'items of something else than a list')
        self.stack[-1].extend(items)

    def set_items(self, items: list) -> None:
        for key in items[::2]:
            _require_flat(key)


class _NotCreated:
    """Stands for an object of the file, which is not created."""

    def __init__(self, name: str = '') -> None:
        self.name = name


class Inspector(_PlainUnpickler):
    """Collect the names in a pickle and check its storages, without creating any object.

    Args:
        file (BinaryIO): its position is behind the pickle afterwards.
        sizes (dict[str, int] | None): bytes of each storage's data, by its key. None if they are not known.
        limit (int): bytes that all storages together may have.

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
        self.append(_NotCreated(name))

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = getattr(function, 'name', None)
        if name in _KEY_CHECKERS:
            _KEY_CHECKERS[name](*arguments)
        self.append(_NotCreated())

    def load_newobj(self) -> None:
        del self.stack[-2:]
        self.append(_NotCreated())

    def load_build(self) -> None:
        del self.stack[-1:]

    def extend(self, items: list) -> None:
        if type(self.stack[-1]) is list:  # other containers are refused by name, or when torch reads the file
            self.stack[-1].extend(items)

    def load_binpersid(self) -> None:
        identity = self.stack.pop()
        self.append(_NotCreated())
        # torch accepts bytes as text here, and a tensor as the type of a storage: refuse both.
        require(type(identity) is tuple and identity and type(identity[0]) is str, 'another reference')
        if identity[0] != 'storage':
            return  # torch refuses it
        _, kind, key, _, count = identity[:5]
        require(type(key) is str and type(count) is int and type(kind) is _NotCreated, 'a storage without its size')
        module, _, name = kind.name.rpartition('.')
        require(module in ('torch', 'torch.cuda', 'torch.storage'), 'a storage of another type')
        size = count * (1 if name == 'UntypedStorage' else StorageType(name).dtype.itemsize)
        # Most versions of torch trust the size in the pickle, and read past the end of a shorter record.
        require(size >= 0 and (self._sizes is None or size == self._sizes.get(key, 0)), f'no {size} bytes of a storage')
        if key not in self._seen:
            self._seen.add(key)
            self._limit -= size
            require(self._limit >= 0, f'no {size} bytes of a storage')


class Unpickler(_PlainUnpickler):
    """Create tensors, plain values, and objects of types on torch's list. torch derives its own reader from this class.

    It looks up and imports nothing by a name from a file. A file can call only functions with an allowed name, and
    change only lists, dicts, and objects of types on the list.
    """

    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(file, **options)
        listed = by_name(safe_globals())
        self._allowed = {
            **listed,
            # Types that torch always allows. A call of a storage class itself would return uninitialised memory.
            **{
                name: StorageType(name.rpartition('.')[2]) if name.endswith('Storage') else entry
                for name, entry in torch._weights_only_unpickler._get_allowed_globals().items()
                if not name.startswith('torch.storage.')
            },
            # Types that newer versions of torch allow.
            **{str(entry): entry for entry in vars(torch).values() if isinstance(entry, torch.dtype)},
            **_KEY_CHECKERS,
            'torch.device': torch.device,
            'builtins.complex': complex,
            '_codecs.encode': _encode,
        }
        self._callable = {id(entry) for entry in self._allowed.values() if callable(entry)}
        self._types = {OrderedDict, Counter, *(entry for entry in listed.values() if isinstance(entry, type))}

    def load_global(self) -> None:
        name = self.read_name()
        require(name in self._allowed, f'an object of type {name}')
        self.append(self._allowed[name])

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        require(id(function) in self._callable and type(arguments) is tuple, 'a call of something else')
        self.stack[-1] = function(*arguments)

    def load_newobj(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        require(isinstance(cls, type) and cls in self._types and type(arguments) is tuple, 'an object of another type')
        self.append(cls.__new__(cls, *arguments))

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        require(type(made) in self._types, f'a state for a {type(made).__name__}')
        if hasattr(made, '__setstate__'):
            made.__setstate__(state)
        else:
            require(type(state) is dict, f'another state than attributes for a {type(made).__name__}')
            vars(made).update(state)

    def set_items(self, items: list) -> None:
        super().set_items(items)
        made = self.stack[-1]
        require(isinstance(made, dict) and type(made) in (dict, *self._types), 'items of something else than a dict')
        made.update(zip(items[::2], items[1::2]))

    def load_binpersid(self) -> None:
        identity = self.stack[-1]
        require(
            type(identity) is tuple
            and tuple(map(type, identity[:5])) == (str, StorageType, str, str, int)
            and identity[0] == 'storage'
            and identity[4] >= 0,
            'a reference to something else than a storage',
        )
        self.stack[-1] = self.persistent_load(identity)
