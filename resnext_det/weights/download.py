"""Published weight files, downloaded once, verified, converted once: `resnext://NAME`.

`resnext://torchvision/X-50-32x4d` can stand wherever Detectron2 takes a path to weights, after
`import resnext_det`. Names and facts are in catalog.py.
"""

import hashlib
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, file_lock, get_cache_dir
from portalocker import LockException
from tqdm import tqdm

from ..errors import UserError
from .catalog import CATALOG, PublishedWeights, find
from .recipe import VERSION

logger = logging.getLogger(__name__)

_PREFIX = "resnext://"
_CHUNK = 1 << 20  # bytes
_MAX_BYTES = 4 * 1024**3  # the largest file, wsl/X-101-32x48d, has 3.1 GiB
_TIMEOUT_S = 60


def cache_dir() -> Path:
    """The folder of downloaded and converted files: $RESNEXT_DET_CACHE, or one in iopath's cache.

    The variable is read at each call, so that a program can set it after the import.
    """
    chosen = os.environ.get("RESNEXT_DET_CACHE")
    return Path(chosen).expanduser() if chosen else Path(get_cache_dir()) / "resnext_det"


def local_weights(name: str) -> Path:
    """Return the converted file of a catalog entry, made by the first process that asks for it.

    A machine without network can be given the publisher's file, at `original_path`.

    Args:
        name: of the catalog, e.g. "torchvision/X-50-32x4d".

    Raises:
        UserError: for an unknown name, a failed download, a file that is not the published one, or
            a cache folder that cannot be written.
    """
    entry = find(name)
    known_hash = entry.sha256_prefix or entry.md5[:8]
    parts = (*name.split("/"), known_hash, f"v{VERSION}.pth")
    converted = cache_dir() / "-".join(filter(None, parts))
    if converted.is_file():  # it is written in one step, so it is whole
        return converted
    with _locked(converted):
        if not converted.is_file():
            from .convert import convert_published

            original, downloaded = original_file(entry)
            convert_published(original, entry, converted)
            if downloaded:
                original.unlink(missing_ok=True)
    return converted


def original_path(entry: PublishedWeights) -> Path:
    """Where the publisher's file is looked for and downloaded to, under its own name.

    Each publisher has a folder, as two of them call different files X-101-32x8d.pkl.
    """
    return cache_dir() / entry.publisher / entry.file_name


def original_file(entry: PublishedWeights) -> tuple[Path, bool]:
    """Return the publisher's file, verified, and whether this call downloaded it.

    Raises:
        UserError: for a failed download, a file that is not the published one, or a cache folder
            that cannot be written.
    """
    path = original_path(entry)
    downloaded = False
    if not path.is_file():
        with _locked(path):
            if not path.is_file():
                _download(entry, path)
                downloaded = True
    if not downloaded and (difference := _difference(path, entry)):
        raise UserError(
            f"{path} is not the published file of {entry.name}: {difference}; it was left as it "
            f"is: remove it, or replace it by {entry.url}"
        )
    if not (entry.sha256_prefix or entry.md5):
        logger.warning(
            "the publisher of %s states no hash; this %s has sha256 %s",
            entry.name,
            entry.file_name,
            sha256_of(path),
        )
    return path, downloaded


def sha256_of(path: Path | str) -> str:
    """The sha256 of a file, 64 hexadecimal digits, read piece by piece."""
    return _digest(path, "sha256")


def register_weights() -> None:
    """Teach Detectron2's path manager `resnext://`. Nothing is downloaded before it is used."""
    PathManager.register_handler(_CatalogHandler(), allow_override=True)


def _digest(path: Path | str, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _difference(path: Path, entry: PublishedWeights) -> str:
    """Say how `path` differs from the published hashes; empty if it does not."""
    for algorithm, digits in (("sha256", entry.sha256_prefix), ("md5", entry.md5)):
        if digits and not (found := _digest(path, algorithm)).startswith(digits):
            return f"its {algorithm} is {found}, the published one starts with {digits}"
    return ""


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Make the folder, and turn what the disk says into one line for the user."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, LockException) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write to the cache folder {folder} ({reason}); RESNEXT_DET_CACHE names another"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`; the others wait."""
    lock = file_lock(str(path))
    with _writing_to(path.parent):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(entry: PublishedWeights, path: Path) -> None:
    """Fetch, verify and only then name the file, so that `path` is whole or absent."""
    temporary = path.with_name(f".{path.name}.part")
    with _writing_to(path.parent):
        try:
            with temporary.open("wb") as file:
                for chunk in _stream(entry, path):
                    file.write(chunk)
            if difference := _difference(temporary, entry):
                raise UserError(
                    f"{entry.url} is not the published file of {entry.name}, and was not kept: "
                    f"{difference}"
                )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _stream(entry: PublishedWeights, path: Path) -> Iterator[bytes]:
    """Yield all of the publisher's file; `path` is where the user may put it if that fails."""
    _check_scheme(entry, entry.url)
    logger.info("downloading %s", entry.url)
    opener = urllib.request.build_opener(_Redirects(entry))
    received = 0
    try:
        with opener.open(entry.url, timeout=_TIMEOUT_S) as response:
            size = response.length  # None where the server does not say
            bar = tqdm(desc=entry.name, total=size, unit="B", unit_scale=True, disable=None)
            with bar:  # on stderr, if that is a terminal
                _check_size(entry, size or 0)
                while chunk := response.read(_CHUNK):
                    received += len(chunk)
                    _check_size(entry, received)
                    yield chunk
                    bar.update(len(chunk))
            if size is not None and received < size:
                raise ConnectionError(f"the connection ended after {received} of {size} bytes")
    except (OSError, HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise UserError(
            f"cannot download {entry.name} ({reason}): fetch {entry.url} elsewhere and put it at "
            f"{path} (RESNEXT_DET_CACHE moves that folder), or set MODEL.WEIGHTS to a converted "
            "file of this machine, or to '' with MODEL.BACKBONE.FREEZE_AT 0 to train from nothing"
        ) from error


def _check_size(entry: PublishedWeights, size: int) -> None:
    if size > _MAX_BYTES:
        raise UserError(f"{entry.url} is larger than {_MAX_BYTES} bytes: not the known file")


def _check_scheme(entry: PublishedWeights, url: str) -> None:
    """Plain http only for a file whose hash is known."""
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme != "https" and not (scheme == "http" and entry.sha256_prefix):
        raise UserError(f"{entry.name}: {url} is not https, so the file could be another")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, entry: PublishedWeights) -> None:
        self._entry = entry

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(self._entry, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
