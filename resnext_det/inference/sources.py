"""What a demo is to look at: images, folders, patterns, videos, standard input."""

import glob
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..images import SUFFIXES

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
STDIN = "-"
# files of a demo that belong to no single input
_RESERVED = ("predictions", "images", "coco_instances_results")


@dataclass(frozen=True)
class Source:
    """One image or video.

    Attributes:
        path: as the user knows it; "-" is standard input.
        name: of its outputs, without suffix; no two sources have the same.
    """

    path: Path
    name: str

    @property
    def shown(self) -> str:
        """The path as text that any stream takes, also where the name is no UTF-8."""
        return str(self.path).encode("utf-8", "backslashreplace").decode("utf-8")

    @property
    def is_stdin(self) -> bool:
        """Whether its content comes from standard input."""
        return str(self.path) == STDIN

    @property
    def is_video(self) -> bool:
        """Whether its suffix is one of a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    @property
    def picture(self) -> str:
        """The name of the file that its detections are drawn into."""
        if self.is_video:
            return f"{self.name}.mp4"
        jpeg = self.path.suffix.lower() in (".jpg", ".jpeg")
        return f"{self.name}.jpg" if jpeg else f"{self.name}.png"


def find_sources(words: Sequence[str]) -> list[Source]:
    """Find all images and videos that words of a command line mean.

    A folder stands for the images right in it, sorted by name, not for those in its folders; a
    pattern such as `data/**/*.jpg`, where it is no file itself, for the images that match it, also
    sorted. Other files in them are left out and counted in one warning. A file named by itself is
    taken whatever its suffix; a video by its suffix. A file that was found before is left out.

    Args:
        words: paths, patterns, or "-" for one image from standard input.

    Raises:
        UserError: if there is nothing at a path, or no image in a folder.
    """
    paths: dict[Path, Path] = {}  # by where it really is
    for word in words:
        try:
            for path in _paths_of(word):
                paths.setdefault(path.resolve(), path)
        except OSError as error:
            raise UserError(f"input {word!r} cannot be read: {error.strerror}") from error
    names = set(_RESERVED)
    return [Source(path, _new_name(path, names)) for path in paths.values()]


def require_apart(sources: Sequence[Source], output: Path) -> None:
    """Check that outputs cannot replace inputs.

    Raises:
        UserError: if `output` is a folder that holds a source.
    """
    folder = output.resolve()
    for source in sources:
        if source.is_stdin:
            continue
        if folder in (source.path.absolute().parent.resolve(), source.path.resolve().parent):
            raise UserError(
                f"--output {output} is the folder of the input {source.path}: name another, so "
                "that no input is replaced"
            )


def _paths_of(word: str) -> Iterator[Path]:
    path = Path(word)
    if word == STDIN or path.is_file():
        yield path
        return
    if path.is_dir():
        where, files = f"folder {word}", sorted(p for p in path.iterdir() if p.is_file())
        without = "holds no image"
    elif glob.has_magic(word):
        where = f"pattern {word}"
        files = sorted(p for p in map(Path, glob.glob(word, recursive=True)) if p.is_file())
        without = "matches no image"
    else:
        key = word.split(".")[0].isupper() and "." in word
        hint = ": config overrides go last, after another flag than --input" if key else ""
        raise UserError(f"input {word!r}: there is no such file or folder{hint}")
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not images:
        raise UserError(f"{where} {without} ({', '.join(SUFFIXES)})")
    if len(images) < len(files):
        skipped = len(files) - len(images)
        logger.warning("%s: %d of %d files are no images, skipped", where, skipped, len(files))
    yield from images


def _new_name(path: Path, names: set[str]) -> str:
    """The path's stem, with a number if a source before has it; file systems may ignore case."""
    stem = "stdin" if str(path) == STDIN else path.stem
    name, number = stem, 2
    while name.casefold() in names:
        name, number = f"{stem}_{number}", number + 1
    names.add(name.casefold())
    return name
