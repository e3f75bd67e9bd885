"""Weight files on disk: reading them without running what is in them, and writing them whole.

The kind of a file is told from its first bytes, not from its name.
"""

import argparse
import contextlib
import json
import pickle
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..atomic import replacing
from ..errors import UserError, one_line
from .pickles import read_pickle
from .recipe import Recipe
from .t7 import read_t7

SUFFIXES = (".pth", ".safetensors")

# at the start of an old torch file: at least its names and shapes
_PICKLE_BYTES = 4 * 1024**2

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32)

# A .t7 file begins with the type of its root: a table or an object (torchfile)
_T7_ROOTS = (3, 4)


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
        # before pickles: the length of the header, its first eight bytes, may begin as theirs do
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
            return RawFile("safetensors", *_read_safetensors(path))
        if start[:1] == b"\x80":  # a pickle, or torch's format before 1.6, which begins with one
            if _is_old_torch(start):
                return RawFile("torch", _read_torch(path, size))
            return RawFile("pickle", read_pickle(path))
        if int.from_bytes(start[:4], "little") in _T7_ROOTS and len(start) == 16:
            return RawFile("t7", read_t7(path))
    if start.lstrip()[:1] == b"<":
        raise UserError(f"{path} is a web page, not a weight file: download it anew")
    raise UserError(
        f"{path} is no weight file: its first bytes {start[:8]!r} are those of no torch, "
        "safetensors, pickle or .t7 file"
    )


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a path into one line for the user.

    Raises:
        UserError: if it is absent, a directory or no regular file, or cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path} is a directory, not a weight file")
        if not stat.S_ISREG(mode):  # a pipe would be waited for, a device never ends
            raise UserError(f"{path} is a pipe or a device, not a weight file")
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _is_old_torch(start: bytes) -> bool:
    # a pickled 0x1950a86a20f9469cfc6c (torch.serialization.MAGIC_NUMBER), as a long of 10 bytes
    return b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"[:10] in start


def _read_torch(path: Path, size: int) -> dict:
    is_archive = zipfile.is_zipfile(path)
    mapped = is_archive and path.suffix != ".safetensors"  # torch would go by that name
    try:
        if is_archive:
            _check_archive(path, size)
        with (
            torch.serialization.safe_globals([argparse.Namespace]),  # options beside the tensors
            path.open("rb") as file,
        ):
            if not is_archive:
                _check_pickle(path, file.read(_PICKLE_BYTES))
                file.seek(0)
            content = torch.load(
                path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped
            )
    except (OSError, UserError):
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not readable: {_unpickling_reason(error)}") from error
    except Exception as error:  # a damaged file fails in any way
        raise UserError(f"{path} is damaged or incomplete: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of weights")
    return content


def _check_archive(path: Path, size: int) -> None:
    """Refuse a zip that torch did not write: it stores records as they are, side by side."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        unpacked = sum(record.file_size for record in records)
        if unpacked > size or any(r.compress_type != zipfile.ZIP_STORED for r in records):
            raise UserError(
                f"{path} is compressed, or a TorchScript archive: save its state dict by torch.save"
            )
        for record in records:
            if record.filename.endswith("data.pkl"):
                _check_pickle(path, archive.read(record))


def _check_pickle(path: Path, content: bytes) -> None:
    """Refuse the one thing that weights_only admits and that takes memory as a file says."""
    if b"bytearray" in content:
        raise UserError(f"{path} is not readable: it refers to bytearray, which takes memory")


def _unpickling_reason(error: Exception) -> str:
    """torch's message is a page; its first mention of a global is what a user needs."""
    match = re.search(r"(?:Unsupported|Blocked)?[^.]*?(?:GLOBAL|global) ([\w.]+)", str(error))
    if match is None:
        return f"it is damaged ({one_line(error, 120)})"
    return (
        f"it refers to {match[1]}, which is not loaded, as such things can run code: save its "
        "tensors alone"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (safetensors.SafetensorError, ValueError, RuntimeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is a damaged safetensors file: {one_line(error)}") from error


def save_atomically(content: object, path: Path) -> None:
    """`torch.save` that leaves either the whole file or none.

    Raises:
        UserError: if it cannot be written.
    """
    with replacing(path) as temporary:
        _write(torch.save, content, temporary)


def _write(write: Callable[..., None], *args: object) -> None:
    """Call torch.save or save_file, which say in ways of their own that a disk is full."""
    try:
        write(*args)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise OSError(one_line(error)) from error


def write_weights(path: Path, tensors: Mapping[str, Tensor], recipe: Recipe | None) -> None:
    """Write tensors, and their recipe unless it is None, to exactly `path`.

    A `.pth` file is `{"model": tensors, "recipe": ...}`, which stock Detectron2 loads too, or the
    bare tensors without a recipe. A `.safetensors` file keeps the recipe as JSON in its metadata.

    Raises:
        OSError: if it cannot be written.
    """
    tensors = {name: _alone(tensor) for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        metadata = {"format": "pt"}
        if recipe is not None:
            metadata["recipe"] = json.dumps(recipe.as_dict())
        _write(safetensors.torch.save_file, tensors, path, metadata)
    elif recipe is None:
        _write(torch.save, tensors, path)
    else:
        content = {
            "model": tensors,
            "recipe": recipe.as_dict(),
            "__author__": "resnext_det",
            # Detectron2 then fits `res2...` to `backbone.bottom_up.res2...`
            "matching_heuristics": True,
        }
        _write(torch.save, content, path)


def require_plain(tensors: Mapping[str, Tensor], file: str) -> None:
    """Refuse tensors that are no plain numbers in memory.

    Raises:
        UserError: for sparse, quantised, complex, 8-bit, expanded and empty-handed tensors.
    """
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = "sparse, quantised or empty"
        elif tensor.dtype in _DTYPES and tensor.numel() <= tensor.untyped_storage().nbytes():
            continue
        raise UserError(
            f"{file}: {name} is a {kind} tensor of {tuple(tensor.shape)}, not of weights"
        )


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
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: its recipe is not JSON: {error}") from error
    return None if values is None else Recipe.from_dict(values, file)
