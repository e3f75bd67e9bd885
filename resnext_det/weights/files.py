"""Weight files on disk: reading them without running what is in them, and writing them whole.

The kind of a file is told from its first bytes, not from its name.
"""

import argparse
import contextlib
import json
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import UserError
from .recipe import Recipe
from .t7 import read_t7

SUFFIXES = (".pth", ".safetensors")

# A .t7 file begins with the type of its root: a table or an object (torchfile)
_T7_ROOTS = (3, 4)

# What the pickles of Detectron and Detectron2 need to be read: dicts, strings, NumPy arrays.
_SAFE_GLOBALS = {
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
}
_ARRAY_MAKERS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}
# Inert classes that training programs put beside the tensors: their options, a best accuracy
_INERT = [
    argparse.Namespace,
    np._core.multiarray.scalar if hasattr(np, "_core") else np.core.multiarray.scalar,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
]


@dataclass(frozen=True)
class RawFile:
    """What a file holds.

    Attributes:
        kind: "torch", "pickle", "safetensors" or "t7".
        content: a dict, or for t7 the root of a tree of Torch7 modules.
        metadata: the text that a safetensors file carries.
    """

    kind: str
    content: object
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_file(path: Path | str) -> RawFile:
    """Read a weight file of any kind; nothing that it holds is executed.

    Raises:
        UserError: for an absent, unreadable, empty, damaged or unknown file, for a directory, for
            one that refers to code, or claims more data than it has.
    """
    path = Path(path)
    with readable(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
        if not size:
            raise UserError(f"{path} is empty")
        if start[:4] == b"PK\x03\x04":
            return RawFile("torch", _read_torch(path, size))
        if start[:1] == b"\x80":  # a pickle, or torch's format before 1.6, which begins with one
            if _is_old_torch(start):
                return RawFile("torch", _read_torch(path, size))
            return RawFile("pickle", _read_pickle(path))
        if int.from_bytes(start[:4], "little") in _T7_ROOTS and len(start) == 16:
            return RawFile("t7", read_t7(path))
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
            return RawFile("safetensors", *_read_safetensors(path))
    if start.lstrip()[:1] == b"<":
        raise UserError(f"{path} is a web page, not a weight file: download it anew")
    raise UserError(
        f"{path} is no weight file: its first bytes {start[:8]!r} are those of no torch, "
        "safetensors, pickle or .t7 file"
    )


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a path into one line for the user."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a directory, not a weight file") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _is_old_torch(start: bytes) -> bool:
    # a pickled 0x1950a86a20f9469cfc6c (torch.serialization.MAGIC_NUMBER), as a long of 10 bytes
    return b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"[:10] in start


def _read_torch(path: Path, size: int) -> dict:
    mapped = zipfile.is_zipfile(path)
    try:
        if mapped:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > size:  # torch stores without compression
                raise UserError(f"{path} claims {unpacked} bytes of data and has {size}")
        with torch.serialization.safe_globals(_INERT):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not readable: {_unpickling_reason(error)}") from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, LookupError) as error:
        raise UserError(f"{path} is damaged or incomplete: {_one_line(error)}") from error
    except (TypeError, AttributeError, MemoryError, AssertionError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of weights")
    return content


def _unpickling_reason(error: Exception) -> str:
    """torch's message is a page; its first mention of a global is what a user needs."""
    match = re.search(r"(?:Unsupported|Blocked)?[^.]*?(?:GLOBAL|global) ([\w.]+)", str(error))
    if match is None:
        return f"it is damaged ({_one_line(error)[:120]})"
    return (
        f"it refers to {match[1]}, which is not loaded, as such things can run code: save its "
        "tensors alone"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class _ArrayName:
    """Stands for numpy.ndarray, which a pickle may name but not call, as a call allocates."""

    def __new__(cls, *_: object) -> "_ArrayName":
        raise pickle.UnpicklingError("an array without data")


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("numpy", "ndarray"):
            return _ArrayName
        if (module, name) in _SAFE_GLOBALS:
            return super().find_class(module, name)
        if (module, name) in _ARRAY_MAKERS:
            return _empty_array
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        raise pickle.UnpicklingError(
            f"it refers to {module}.{name}, which is not loaded, as such things can run code"
        )


def _empty_array(kind: type, shape: tuple, dtype: object) -> np.ndarray:
    """NumPy's `_reconstruct` as its own pickles call it: the data come later."""
    if kind is not _ArrayName or shape != (0,):
        raise pickle.UnpicklingError(f"an array of shape {shape} without data")
    return np.empty(0, np.dtype("uint8"))


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


def _read_pickle(path: Path) -> dict:
    """Read a pickle of Detectron or Detectron2; arrays become tensors."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a readable weight pickle: {_one_line(error)}") from error
    except (EOFError, LookupError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"{path} is a damaged pickle: {_one_line(error)}") from error
    except (MemoryError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is a damaged pickle: it claims absurd sizes") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of weights")
    return _with_tensors(content, path)


def _with_tensors(content: dict, path: Path) -> dict:
    for key, value in content.items():
        if isinstance(value, dict):
            content[key] = _with_tensors(value, path)
        elif isinstance(value, np.ndarray):
            if value.dtype.kind not in "fiu":
                raise UserError(f"{path}: {key} is an array of {value.dtype}, not of numbers")
            content[key] = torch.from_numpy(np.require(value, requirements=["C", "W"]))
    return content


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (safetensors.SafetensorError, ValueError, RuntimeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is a damaged safetensors file: {_one_line(error)}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it becomes `path` if nothing fails.

    Raises:
        UserError: if the folder is absent or not writable, or the disk is full.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def save_atomically(content: object, path: Path) -> None:
    """`torch.save` that leaves either the whole file or none.

    Raises:
        UserError: if it cannot be written.
    """
    with replacing(path) as temporary:
        torch.save(content, temporary)


def write_weights(path: Path, tensors: Mapping[str, Tensor], recipe: Recipe | None) -> None:
    """Write tensors, and their recipe unless it is None, to exactly `path`.

    A `.pth` file is `{"model": tensors, "recipe": ...}`, which stock Detectron2 loads too, or the
    bare tensors without a recipe. A `.safetensors` file keeps the recipe as JSON in its metadata.
    """
    tensors = {name: _alone(tensor) for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        metadata = {"format": "pt"}
        if recipe is not None:
            metadata["recipe"] = json.dumps(recipe.as_dict())
        safetensors.torch.save_file(tensors, path, metadata)
    elif recipe is None:
        torch.save(tensors, path)
    else:
        content = {
            "model": tensors,
            "recipe": recipe.as_dict(),
            "__author__": "resnext_det",
            # Detectron2 then fits `res2...` to `backbone.bottom_up.res2...`
            "matching_heuristics": True,
        }
        torch.save(content, path)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in a storage of its own size: torch.save writes whole storages."""
    tensor = tensor.detach()
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def recipe_in(raw: RawFile, file: str) -> Recipe | None:
    """The recipe that a file of this package carries, None in others.

    Raises:
        UserError: if it is damaged.
    """
    values = raw.content.get("recipe") if isinstance(raw.content, dict) else None
    if raw.kind == "safetensors":
        try:
            values = json.loads(raw.metadata["recipe"]) if "recipe" in raw.metadata else None
        except ValueError as error:
            raise UserError(f"{file}: its recipe is not JSON: {error}") from error
    return None if values is None else Recipe.from_dict(values, file)
