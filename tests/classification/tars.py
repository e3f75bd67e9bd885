"""Tar files of images for tests."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.classification.classifiers import make_image


def png(seed: int) -> bytes:
    """A small picture as the content of a PNG file."""
    file = io.BytesIO()
    make_image(seed).save(file, "PNG")
    return file.getvalue()


def write_tar(file: Path, members: Mapping[str, bytes | str | int], mode: str = "w") -> Path:
    """Pack members by name: bytes and texts as they are, for a number the picture of this seed."""
    with tarfile.open(file, mode) as archive:
        for name, content in members.items():
            content = png(content) if isinstance(content, int) else content
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file
