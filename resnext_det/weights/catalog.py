"""The pretrained files of the shipped configs: `resnext_det://X-50-32x4d.pth` and so on.

Such a path downloads the publisher's file once, checks it against the published sha256, renames its
tensors to Detectron2's names and keeps the result in iopath's cache. Any Detectron2 code can then
load it, after `import resnext_det`.
"""

import hashlib
import logging
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, file_lock, get_cache_dir
from torch import Tensor

from ..errors import UserError
from .sources import from_torchvision

logger = logging.getLogger(__name__)

_PREFIX = "resnext_det://"
_MAX_BYTES = 2 * 1024**3  # the largest file below has 340 MB
_TIMEOUT_S = 60


@dataclass(frozen=True)
class PretrainedFile:
    """A published ImageNet-1K file. All of them expect RGB images with ImageNet statistics.

    Attributes:
        url: where the publisher keeps it.
        sha256_prefix: the first eight digits of its sha256, all that its publisher states.
        convert: renames its tensors to Detectron2's names.
        licence: of the weights.
    """

    url: str
    sha256_prefix: str
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    licence: str


def _published(url: str, licence: str) -> PretrainedFile:
    # Both publishers end the file name in the first eight digits of its sha256.
    digits = url.removesuffix(".pth")[-8:]
    return PretrainedFile(url, digits, from_torchvision, licence)


_TORCHVISION = "https://download.pytorch.org/models/"
# The authors' Torch7 release (Table 3 and 4's networks) in torchvision's names.
_OPENMMLAB = "https://download.openmmlab.com/pretrain/third_party/"

CATALOG = {
    "R-50.pth": _published(f"{_TORCHVISION}resnet50-0676ba61.pth", "BSD-3-Clause"),
    "R-101.pth": _published(f"{_TORCHVISION}resnet101-63fe2227.pth", "BSD-3-Clause"),
    "X-50-32x4d.pth": _published(f"{_OPENMMLAB}resnext50-32x4d-0ab1a123.pth", "CC-BY-NC-4.0"),
    "X-101-32x4d.pth": _published(f"{_OPENMMLAB}resnext101_32x4d-a5af3160.pth", "CC-BY-NC-4.0"),
    "X-101-64x4d.pth": _published(f"{_OPENMMLAB}resnext101_64x4d-ee2c6f71.pth", "CC-BY-NC-4.0"),
}


def local_weights(name: str) -> Path:
    """Return the converted file of a catalogue entry, downloading it the first time.

    A machine without network can be given the publisher's file: put it, under its own name, into
    the cache folder that the error names.

    Raises:
        UserError: for an unknown name, a failed download, or a file that is not the published one.
    """
    if name not in CATALOG:
        raise UserError(f"no weights named {_PREFIX}{name}; there are {', '.join(CATALOG)}")
    entry = CATALOG[name]
    cache = Path(get_cache_dir()) / "resnext_det"
    converted = cache / f"{entry.sha256_prefix}-{name}"
    with file_lock(str(converted)):
        if converted.is_file():
            return converted
        original = cache / entry.url.rsplit("/", 1)[1]
        if not original.is_file():
            _download(entry, original)
        _verify(original, entry.sha256_prefix)
        state_dict = torch.load(original, map_location="cpu", weights_only=True)
        content = {
            "model": entry.convert(state_dict.get("state_dict", state_dict)),
            "__author__": "resnext_det",
            # Detectron2 then fits `res2...` to `backbone.bottom_up.res2...`
            "matching_heuristics": True,
        }
        save_atomically(content, converted)
        original.unlink()
    return converted


def save_atomically(content: object, path: Path) -> None:
    """`torch.save` that leaves either the whole file or none."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _download(entry: PretrainedFile, path: Path) -> None:
    url = entry.url
    logger.info("downloading %s", url)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response,
            temporary.open("wb") as file,
        ):
            while chunk := response.read(1 << 20):
                file.write(chunk)
                if file.tell() > _MAX_BYTES:
                    raise UserError(f"{url} is larger than {_MAX_BYTES} bytes: not the known file")
        _verify(temporary, entry.sha256_prefix)
        os.replace(temporary, path)
    except OSError as error:  # URLError is one
        reason = getattr(error, "reason", error)
        raise UserError(
            f"cannot download {url} ({reason}); fetch it elsewhere and put it at {path}, or set "
            "MODEL.WEIGHTS to a local file (MODEL.WEIGHTS '' trains from scratch)"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _verify(path: Path, sha256_prefix: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
        if digest is None:  # Python 3.10
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    if not digest.hexdigest().startswith(sha256_prefix):
        raise UserError(
            f"{path} has sha256 {digest.hexdigest()}, the published file starts with "
            f"{sha256_prefix}: it is damaged or another file; fetch it anew"
        )


class _CatalogHandler(PathHandler):
    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: object) -> str:
        return str(local_weights(path.removeprefix(_PREFIX)))

    def _isfile(self, path: str, **kwargs: object) -> bool:
        return path.removeprefix(_PREFIX) in CATALOG

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: object):
        return open(self._get_local_path(path), mode)


def register_weights() -> None:
    """Teach Detectron2's path manager `resnext_det://`. Nothing is downloaded before it is used."""
    PathManager.register_handler(_CatalogHandler(), allow_override=True)
