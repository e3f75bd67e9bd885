"""Reading Torch7's binary `.t7` files safely.

A file is a tree of tables, modules (`nn.Sequential`, ...) and tensors, written by torch7's
File.lua, generic/Storage.c and generic/Tensor.c. Lua functions in it are kept as bytes and never
run. `torchfile` reads the tree; its trust in lengths and strides is taken back here.
"""

import io
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError, one_line

_ARRAY = re.compile(rb"^torch\.(?:Cuda)?(\w*?)(Tensor|Storage)$")
_DTYPES = {
    b"": np.float32,  # torch.CudaTensor
    b"Byte": np.uint8,
    b"Char": np.int8,
    b"Short": np.int16,
    b"Int": np.int32,
    b"Long": np.int64,
    b"Float": np.float32,
    b"Double": np.float64,
}
_TABLE, _TORCH = 3, 4  # types of objects in File.lua


class _File(io.BufferedReader):
    """A file that refuses to be read past its end, before anything is allocated."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def need(self, size: int) -> None:
        """Raise a ValueError unless `size` bytes are left."""
        at = self.tell()
        if not 0 <= size <= self._size - at:
            raise ValueError(
                f"at byte {at} it announces {size} bytes, and {self._size - at} are left"
            )

    def read(self, size: int | None = -1) -> bytes:
        self.need(size)
        return super().read(size)


def _view(
    storage: object, dtype: type, size: Sequence[int], stride: Sequence[int], offset: int
) -> np.ndarray:
    """The array (size) in a storage; refuses what lies outside of the storage or overlaps."""
    if not size or 0 in size:
        return np.empty(0, dtype)
    # only a storage owns its memory; an array that is a view says nothing about what lies beyond
    if not isinstance(storage, np.ndarray) or storage.base is not None or storage.dtype != dtype:
        raise ValueError("a tensor does not refer to a storage of its type")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(*size, *stride, offset) < 0 or max(last + 1, math.prod(size)) > len(storage):
        raise ValueError(f"a tensor of size {size} reaches outside of its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps)


class _Checks:
    """What `torchfile.T7Reader` lacks: checks of lengths, strides and types."""

    module_class: type  # torchfile.TorchObject

    def read_obj(self) -> object:
        kind = self.read_int()
        if kind not in range(9):
            raise ValueError(f"no object has type {kind}")
        if kind not in (_TABLE, _TORCH):
            self.f.seek(-4, os.SEEK_CUR)
            return super().read_obj()
        index = self.read_int()
        if index not in self.objects:
            read = self._read_table if kind == _TABLE else self._read_torch
            read(index)
        return self.objects[index]

    def _read_table(self, index: int) -> None:
        size = self.read_int()
        self.f.need(8 * size)  # a key and a value have four bytes at least
        table = self.objects[index] = {}
        for _ in range(size):
            key = self.read_obj()
            table[key] = self.read_obj()

    def _read_torch(self, index: int) -> None:
        name = self.read_string()
        if name.startswith(b"V "):  # a version, then the class
            name = self.read_string()
        array = _ARRAY.match(name)
        if array is None:
            module = self.objects[index] = self.module_class(name)
            module._obj = self.read_obj()
            if not isinstance(module._obj, dict):
                raise ValueError(f"the fields of a {name!r} are not a table")
        elif array[1] not in _DTYPES:
            raise ValueError(f"it holds a {name!r}, which is not supported")
        else:
            self.objects[index] = None  # for what refers to itself
            read = self._read_storage if array[2] == b"Storage" else self._read_tensor
            self.objects[index] = read(_DTYPES[array[1]])

    def _read_storage(self, dtype: type) -> np.ndarray:
        count = self.read_long()
        self.f.need(count * np.dtype(dtype).itemsize)
        storage = np.empty(count, dtype)
        if self.f.readinto(storage) != storage.nbytes:
            raise ValueError("it ends within a storage")
        return storage

    def _read_tensor(self, dtype: type) -> np.ndarray:
        dims = self.read_int()
        self.f.need(16 * dims)
        size = [self.read_long() for _ in range(dims)]
        stride = [self.read_long() for _ in range(dims)]
        offset = self.read_long() - 1
        return _view(self.read_obj(), dtype, size, stride, offset)


def read_t7(path: Path | str) -> object:
    """Read a binary `.t7` file.

    Returns:
        The root: tables are dicts (keys: bytes or numbers, lists count from 1), modules
        `torchfile.TorchObject`, tensors writable NumPy arrays that are views of their storages.

    Raises:
        UserError: if the file is absent, damaged, or holds half precision tensors.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist or is no file")
    try:
        import torchfile
    except ImportError as error:
        raise UserError(f"{path}: Torch7 files need torchfile: pip install torchfile") from error
    members = {"module_class": torchfile.TorchObject}
    reader = type("Reader", (_Checks, torchfile.T7Reader), members)
    try:
        with _File(path) as file:
            return reader(file, force_8bytes_long=True).read_obj()
    except RecursionError as error:
        raise UserError(f"{path} is not a readable Torch7 file: it is nested too deep") from error
    except (ValueError, TypeError, OverflowError, MemoryError, OSError) as error:
        reason = one_line(error)
        raise UserError(f"{path} is not a readable Torch7 file: {reason}") from error
