"""Reading pickles of Detectron and Detectron2 without running anything that they hold.

They need dicts, strings, numbers and NumPy arrays. Arrays are rebuilt here, from checked shapes and
bytes; NumPy's own reconstruction would take memory, and types, as a file says.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..errors import UserError, one_line

_NUMBERS = re.compile(r"[<>|=]?(f[248]|[iu][1248])")


class _Dtype:
    """A number's type as NumPy pickles it: numpy.dtype('f4', False, True), then its byte order."""

    def __init__(self, name: object, *_: object) -> None:
        name = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
            raise pickle.UnpicklingError(f"an array of {str(name)[:20]!r}, not of numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array whose data come with its state: (version, shape, dtype, Fortran order, bytes)."""

    def __init__(self, kind: object, shape: object, *_: object) -> None:
        if kind is not _Name or shape != (0,):
            raise pickle.UnpicklingError("an array without data")
        self.tensor = torch.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran_order, data = state
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin1")
        if not isinstance(data, bytes) or not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("an array without numbers")
        if min(shape, default=0) < 0:  # NumPy would work it out
            raise pickle.UnpicklingError(f"an array of shape {shape}")
        array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran_order else "C")
        native = np.ascontiguousarray(array, dtype.dtype.newbyteorder("=")).reshape(shape)
        self.tensor = torch.from_numpy(native if native.flags.writeable else native.copy())


class _Name:
    """Stands for a class that a pickle names and that nothing may be made of."""

    def __new__(cls, *_: object) -> "_Name":
        raise pickle.UnpicklingError("an array without data")


def _scalar(dtype: _Dtype, data: bytes | str) -> float:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.dtype, count=1)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


_ADMITTED = {
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): dict,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Name,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


class _Memo(dict):
    """What a pickle may refer to again: all but the arrays' data, which would stay in memory."""

    def __setitem__(self, index: int, value: object) -> None:
        parts = value if isinstance(value, tuple) else (value,)  # an array's state is a tuple
        has_data = any(isinstance(part, bytes | str) and len(part) > 4096 for part in parts)
        super().__setitem__(index, None if has_data else value)


# the one in Python: the one in C takes the memory that an opcode asks for
class _Unpickler(pickle._Unpickler):
    def __init__(self, file: "_Bounded", **options: str) -> None:
        super().__init__(file, **options)
        self.memo = _Memo()

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, which is not loaded, as such things can run code"
            )
        return _ADMITTED[module, name]


class _Bounded:
    """A file that gives no more than it has, and takes no memory for more."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise pickle.UnpicklingError("it ends early, or claims a size that it does not have")
        return self._file.read(count)

    def readinto(self, buffer: bytearray) -> int:
        return self._file.readinto(buffer)

    def readline(self) -> bytes:
        return self._file.readline(1000)


def read_pickle(path: Path, what: str = "weight") -> dict:
    """Read a dict of (dicts of) arrays, which become tensors, numbers and strings.

    Args:
        path: of the file.
        what: messages call it a "`what` pickle".

    Raises:
        UserError: if the file is damaged, holds anything else, or refers to anything else.
    """
    try:
        with path.open("rb") as file:
            bounded = _Bounded(file, path.stat().st_size)
            content = _with_tensors(_Unpickler(bounded, encoding="latin1").load())
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        reason = one_line(error)
        raise UserError(f"{path} is not a readable {what} pickle: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not the dict of a {what} pickle")
    return content


def _with_tensors(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _with_tensors(item) for name, item in value.items()}
    return value.tensor if isinstance(value, _Array) else value
