"""Images in tar files, read where they lie: nothing is unpacked.

A set of a million files is slow to copy and, on a network's disks, to open; the same in a few tar
files is not. Only headers are read to list them, which takes minutes for a set of ImageNet's size
on a slow disk. As no member is ever written, names that are absolute or hold ".." do no harm.
"""

import functools
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..images import SUFFIXES
from .image_set import ImageSet, decode_rgb, is_image_name
from .member_classes import ClassRule, Member, sample_key

COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".tzst")
_MAGIC = (b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh", b"\x28\xb5\x2f\xfd")  # gzip, xz, bzip2, zstd
_KINDS = (np.int64, np.int32, np.bytes_, np.int64, np.int64)  # code, tar, name, offset, size
_LONGEST = 4096  # bytes of a name, Linux's limit; each row of an array of names takes the longest
_OPEN = 64  # files at once in a process; ImageNet-22K has 21841, systems often allow 1024


@dataclass(frozen=True, eq=False)
class TarImages(ImageSet):
    """Images that are members of tar files.

    Attributes:
        files: the tar files.
        changed: for each of them the time of its last change, in nanoseconds, when it was listed.
        tar: (N,) int32, which of `files` an image is in.
        offset: (N,) int64, where its content begins, in bytes.
        size: (N,) int64, bytes of content.
        member: (N,) its name there as bytes.
    """

    files: tuple[Path, ...]
    changed: tuple[int, ...]
    tar: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    member: np.ndarray

    def name(self, index: int) -> str:
        return f"{self.files[self.tar[index]]}:{os.fsdecode(bytes(self.member[index]))}"

    def read(self, index: int) -> Image.Image:
        number, size, name = self.tar[index], int(self.size[index]), self.name(index)
        try:
            opened = _open(self.files[number], self.changed[number])
            content = os.pread(opened.descriptor, size, int(self.offset[index]))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot read image {name}: {reason}") from error
        return decode_rgb(content, name)


class _OpenFile:
    """A descriptor for `os.pread`, which any thread or process may use; closed when forgotten."""

    def __init__(self, file: Path) -> None:
        self.descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # else it could not be opened
            os.close(self.descriptor)


@functools.lru_cache(maxsize=_OPEN)
def _open(file: Path, changed: int) -> _OpenFile:
    """The open file; kept here and not in a set, whose pickles and copies then hold none.

    Raises:
        OSError: if it cannot be opened.
        UserError: if it is not as it was when it was listed.
    """
    opened = _OpenFile(file)
    if os.fstat(opened.descriptor).st_mtime_ns != changed:
        raise UserError(f"{file} was changed after its images were listed: start again")
    return opened


def read_tars(
    files: Sequence[Path],
    root: Path,
    classes: Sequence[str] | None = None,
    *,
    subset: bool = False,
    by_tar: bool = False,
) -> TarImages:
    """List the images of tar files, in the order that they have there.

    Images are the regular members, and hard links to such, with the suffix of an image
    (`resnext_det.images.SUFFIXES`) that are not hidden; symbolic links and other members are left
    out. `ClassRule` says their classes.

    Args:
        files: uncompressed tar files.
        root: what messages call them all.
        classes: names in the order of the labels; by default all, sorted. Where classes are
            numbers (.cls), these are the labels, and `classes` the names for them.
        subset: leave out images of classes other than `classes`.
        by_tar: each tar holds images of the class that it is named after, and nothing else.

    Raises:
        UserError: if a file is absent, compressed, no tar or cut off, or has no images; if the
            class of an image is not known, or it is sparse or a hard link to nothing before it;
            or if the classes are not `classes`.
    """
    rule = ClassRule(classes, by_tar)
    codes: dict[str, int] = {}
    parts, changed = [], []
    for number, file in enumerate(files):
        changed.append(require_tar(file))
        members, numbers = _list_tar(file)
        of_images = [codes.setdefault(rule.name(file, m, numbers), len(codes)) for m in members]
        columns = (of_images, [number] * len(members), *zip(*members, strict=True))
        parts.append([np.array(c, kind) for c, kind in zip(columns, _KINDS, strict=True)])
    code, tar, member, offset, size = map(np.concatenate, zip(*parts, strict=True))
    found = rule.in_order(root, codes, len(files))
    labels = np.argsort([codes[name] for name in found])[code]
    images = TarImages(root, found, labels, tuple(files), tuple(changed), tar, offset, size, member)
    return images if classes is None else images.labelled(classes, subset)


def require_tar(file: Path) -> int:
    """Refuse a file that is absent or compressed.

    Returns:
        The time of its last change, in nanoseconds.

    Raises:
        UserError: for such a file.
    """
    try:
        with file.open("rb") as opened:
            compressed = opened.read(6).startswith(_MAGIC)
            changed = os.fstat(opened.fileno()).st_mtime_ns
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    if compressed or is_compressed_name(file.name):
        raise UserError(
            f"{file} is compressed, so no image can be read on its own: unpack it, or at least "
            "make it a plain .tar (images hardly compress)"
        )
    return changed


def is_compressed_name(name: str) -> bool:
    """Whether a file of this name is a compressed tar."""
    return name.lower().endswith(COMPRESSED)


def tar_members(file: Path) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed tar; of images only the headers are read.

    Raises:
        UserError: if it cannot be read, is no tar, damaged, or was cut off.
    """
    try:
        with tarfile.open(file, "r:") as archive:
            begin = 0
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile would keep them all, a kilobyte each
                _require_sound(member, begin, archive.offset)
                begin = archive.offset
                yield member
            # it takes a damaged header, or one that was cut off, for the end, which is zeros
            archive.fileobj.seek(archive.offset)
            end = archive.fileobj.read(tarfile.BLOCKSIZE)
            if len(end) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it was cut off")
            if end.strip(b"\0"):
                raise tarfile.ReadError(f"it is damaged at byte {archive.offset}")
    except (OSError, tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} is no whole tar file: {reason}") from error


def _require_sound(member: tarfile.TarInfo, begin: int, end: int) -> None:
    """Refuse a header that would lead backwards, to what is not the member's, or to a huge array.

    Args:
        member: whose header, with what belongs to it, is at byte `begin`.
        begin: see above.
        end: where the next one is.

    Raises:
        tarfile.ReadError: for such a header.
    """
    plain = member.isreg() and not member.issparse()
    beyond = plain and member.offset_data + member.size > end
    if member.size < 0 or end <= begin or beyond:
        raise tarfile.ReadError(f"it is damaged at byte {begin}")
    length = max(len(os.fsencode(member.name)), len(os.fsencode(member.linkname)))
    if length > _LONGEST:
        raise tarfile.ReadError(
            f"a name of {length} bytes at byte {begin} is longer than {_LONGEST}"
        )


def count_in_tar(file: Path) -> int:
    """How many members are images, hard links included; see `tar_members`."""
    members = (m for m in tar_members(file) if m.isfile() or m.islnk())
    return sum(is_image_name(m.name.rpartition("/")[2]) for m in members)


def _list_tar(file: Path) -> tuple[list[Member], dict[str, str]]:
    """The images, and the content of webdataset's .cls members by the key of their samples."""
    images: list[Member] = []
    numbers: dict[str, str] = {}
    stored: dict[bytes, Member] = {}  # files so far by name, for hard links
    inner = ""
    with file.open("rb", buffering=0) as opened:
        for member in tar_members(file):
            if member.isfile() and not member.issparse():
                name = os.fsencode(member.name)
                stored[name] = Member(name, member.offset_data, member.size)
            folder, _, base = member.name.rpartition("/")
            if not (member.isfile() or member.islnk()) or _is_hidden(folder):
                continue
            if is_image_name(base):
                images.append(_content(file, member, stored))
            elif base.endswith(".cls"):
                content = _content(file, member, stored)
                number = os.pread(opened.fileno(), min(content.size, 100), content.offset)
                numbers[sample_key(member.name)] = number.decode("latin1")
            elif base.endswith(".tar") or is_compressed_name(base):
                inner = member.name
    if not images and inner:
        raise UserError(
            f"{file} holds tar files, such as {inner}: unpack them into a folder, which can be "
            "read as it is (<class>.tar for each class)"
        )
    if not images:
        raise UserError(f"{file} holds no image ({', '.join(SUFFIXES)})")
    return images, numbers


def _content(file: Path, member: tarfile.TarInfo, stored: Mapping[bytes, Member]) -> Member:
    """Where a file's or a hard link's content is.

    Args:
        file: the tar.
        member: a file, or a hard link.
        stored: the files up to it by name.

    Raises:
        UserError: for a sparse file, or a link to something else.
    """
    if member.issparse():
        raise UserError(f"{file}:{member.name} is sparse: make the tar without that")
    target = member.linkname if member.islnk() else member.name
    content = stored.get(os.fsencode(target))
    if content is None:
        raise UserError(
            f"{file}:{member.name} is a hard link to {target}, which is no file before it: make "
            "the tar with --hard-dereference"
        )
    return content._replace(name=os.fsencode(member.name))


def _is_hidden(folder: str) -> bool:
    """As macOS adds them; "." and ".." are not."""
    return any(part.startswith(".") and part.strip(".") for part in folder.split("/"))
