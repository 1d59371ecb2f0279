"""What ``torch.load(weights_only=True)`` may make, beside its own, of a file that mmengine wrote.

torch's safe unpickler calls what is on its list with any arguments that a file gives, and sets the state of the objects
to any state that a file gives. Most of NumPy does not stand that: a dtype whose state is set to hold objects turns any
bytes into pointers, and ``numpy.array`` reads any address that an object's ``__array_interface__`` names. So nothing of
NumPy or mmengine is put on the list itself. On it, under the names that a pickle has for them, are the stand-ins below.
Each makes one plain thing, and raises ``pickle.UnpicklingError`` for everything that mmengine does not write.
"""

import functools
import math
import re
from typing import Any, Callable, List

import numpy as np
from mmengine.logging.history_buffer import HistoryBuffer

from .require import require

# bool, integers, real and complex numbers, strings of a fixed length. No objects, no fields, no sub-arrays.
_PLAIN_KIND = re.compile(r'b1|[iu][1248]|f[248]|c8|c16|[US][0-9]{1,6}')
# An array that holds nothing may have large dimensions beside a 0: below this many bytes, without the 0.
_EMPTY_BYTES = 2**20


_require = functools.partial(require, writer='mmengine')


class _DType:
    """Stands for ``numpy.dtype``: a plain kind and its byte order. NumPy's own can be changed while arrays use it."""

    def __new__(cls, kind: Any = None, *flags: Any) -> '_DType':
        _require(type(kind) is str and _PLAIN_KIND.fullmatch(kind) is not None, 'a NumPy dtype that is not plain')
        self = super().__new__(cls)
        self.dtype = np.dtype(kind)
        return self

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, sub-array, names, fields, itemsize, alignment, flags)
        _require(
            type(state) is tuple
            and len(state) == 8
            and type(state[1]) is str
            and state[1] in ('<', '>', '|', '=')
            and all(part is None for part in state[2:5]),
            'a NumPy dtype that is not plain',
        )
        self.dtype = self.dtype.newbyteorder(state[1])

    def __reduce__(self):
        return np.dtype, (self.dtype.str,)  # a copy is a real dtype


def _plain_dtype(dtype: Any) -> np.dtype:
    if type(dtype) is _DType:
        return dtype.dtype
    # A real dtype comes from a program that has put NumPy's own on the list. Its state may change: take a new one.
    plain = isinstance(dtype, np.dtype) and _PLAIN_KIND.fullmatch(dtype.str[1:])
    _require(bool(plain), 'a NumPy array without a plain dtype')
    return np.dtype(dtype.str)


class _Array(np.ndarray):
    """Stands for ``numpy.ndarray``, and is saved and copied as one. Its state can be set once, to a checked one."""

    def __new__(cls, *args: Any) -> '_Array':
        _require(not args, 'a NumPy array with other arguments')
        return super().__new__(cls, (0,))

    def __setstate__(self, state: Any) -> None:
        # A second state would free memory that views of the first one use.
        _require(type(state) is tuple and len(state) == 5 and not hasattr(self, '_filled'), 'a changed NumPy array')
        _, shape, dtype, fortran, data = state
        dtype = _plain_dtype(dtype)
        _require(
            type(shape) is tuple
            and len(shape) <= 32
            and all(type(size) is int and size >= 0 for size in shape)
            and type(data) is bytes
            and len(data) == math.prod(shape) * dtype.itemsize
            and (len(data) > 0 or math.prod(size or 1 for size in shape) * dtype.itemsize <= _EMPTY_BYTES),
            'a NumPy array whose data does not fit its shape',
        )
        if dtype.kind == 'U' and data:
            letters = np.frombuffer(data, np.dtype('u4').newbyteorder(dtype.byteorder))
            _require(letters.max() <= 0x10FFFF, 'a string that is not Unicode')
        super().__setstate__((1, shape, dtype, bool(fortran), data))
        self._filled = True

    def __reduce__(self):
        return self.view(np.ndarray).__reduce__()

    def __reduce_ex__(self, protocol):
        return self.view(np.ndarray).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> np.ndarray:
        return np.array(self)


def _reconstruct(subtype: Any, *shape_and_kind: Any) -> _Array:
    """Stand for the function by which NumPy's arrays are pickled: an empty array, whose state follows."""
    _require(subtype is _Array or subtype is np.ndarray, 'an array of another type')
    return _Array()


def _scalar(dtype: Any, data: Any) -> np.generic:
    """Stand for the function by which NumPy's scalars are pickled."""
    array = _Array()
    array.__setstate__((1, (), dtype, False, data))
    return array[()]


class _HistoryBuffer(HistoryBuffer):
    """Stands for mmengine's HistoryBuffer, and becomes one when its state is set.

    mmengine's own takes statistics out of a file into the class, for the whole process, and makes arrays of what the
    file gives.
    """

    def __new__(cls, *args: Any) -> '_HistoryBuffer':
        _require(not args, 'a HistoryBuffer with arguments')
        self = super().__new__(cls)
        self.__init__()  # pickle does not call it
        return self

    def __setstate__(self, state: Any) -> None:
        _require(type(state) is dict, 'a HistoryBuffer without its state')
        history, counts, max_length = map(state.get, ('_log_history', '_count_history', 'max_length'))
        _require(
            all(type(a) in (_Array, np.ndarray) and a.ndim == 1 and a.dtype.kind in 'biuf' for a in (history, counts))
            and len(history) == len(counts)
            and type(max_length) is int,
            'a HistoryBuffer that is damaged',
        )
        self._log_history, self._count_history, self.max_length = np.array(history), np.array(counts), max_length
        self.__class__ = HistoryBuffer


def _statistic(owner: Any, name: Any) -> Callable:
    """Stand for ``getattr``, by which a pickled HistoryBuffer names the functions of its statistics."""
    known = (owner is _HistoryBuffer or owner is HistoryBuffer) and type(name) is str
    _require(known and name in ('min', 'max', 'mean', 'current'), f'attribute {name!r} of {owner!r}')
    return getattr(HistoryBuffer, name)


def _no_bytes(*args: Any) -> bytes:
    """Stand for ``bytes``, as which the data of an empty array is pickled."""
    _require(not args, 'bytes made of something else')
    return b''


def _config_dict(content: Any) -> dict:
    """Stand for mmengine's ConfigDict: a plain dict."""
    _require(type(content) is dict, 'a ConfigDict of something else')
    return content


def _named(name: str, stand_in: Callable) -> Callable:
    """Return a stand-in that torch finds under ``name``.

    torch 2.4 and 2.5 take the name from the object alone; later ones also take pairs of object and name.
    """
    if not isinstance(stand_in, type):
        stand_in = functools.partial(stand_in)
    stand_in.__module__, _, stand_in.__name__ = name.rpartition('.')
    stand_in.__qualname__ = stand_in.__name__
    return stand_in


def _numpy(name: str, stand_in: Callable) -> List[Callable]:
    """Return a stand-in under the names of NumPy 1 and NumPy 2."""
    return [_named(f'numpy.{core}.multiarray.{name}', stand_in) for core in ('core', '_core')]


STAND_INS = [
    # The message hub keeps the history of each logged value in one, and NumPy arrays in it.
    _named('mmengine.logging.history_buffer.HistoryBuffer', _HistoryBuffer),
    _named('builtins.getattr', _statistic),  # a HistoryBuffer names its own methods: getattr(HistoryBuffer, 'mean')
    _named('numpy.ndarray', _Array),
    _named('numpy.dtype', _DType),
    *_numpy('_reconstruct', _reconstruct),
    _named('builtins.bytes', _no_bytes),  # the data of an empty array
    # Scores (best_score) and hyper-parameters that were computed with NumPy.
    *_numpy('scalar', _scalar),
    # dataset_meta, where the config gives a data set's metainfo with dicts in it.
    _named('mmengine.config.config.ConfigDict', _config_dict),
]
