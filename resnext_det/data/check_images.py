"""Check the pixels of a data set: every file is decoded, over several processes."""

import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..errors import UserError
from .check_objects import Problems, image_problems, image_size
from .findings import Findings, Words

_ORIENTATION = 274  # EXIF's tag; 5 to 8 swap width and height
_CHUNK = 64  # images that a process takes at a time
_FEW = 500  # images; fewer are done before processes have started
UNUSABLE = ("image-missing", "image-unreadable", "image-truncated")

Task = tuple[int, str, tuple[int, int] | None]  # index in `images`, path, stated (width, height)


def check_images(
    images: list, root: Path, findings: Findings, *, workers: int | None = None
) -> set[int]:
    """Decode every image of an annotation file and add what is wrong to `findings`.

    Entries that are no images with a name below `root` are left to `check.check_annotations`.

    Args:
        images: `images` of the annotation file.
        root: folder of the images.
        workers: number of processes, at least 1; by default one a core.

    Returns:
        The indices in `images` of files that cannot be used in training.

    Raises:
        UserError: if `root` is not a folder, or a process died.
    """
    if not Path(root).is_dir():
        raise UserError(f"image folder {root} is not there")
    tasks = _tasks(images, root)
    workers = workers or _num_cores()
    unusable = set()
    with tqdm(total=len(tasks), desc="images", unit="", disable=None) as progress:
        for (index, path, _), problems in _inspected(tasks, workers):
            progress.update()
            for code, reason in problems:
                example = "image {} (file {}): {}" if reason else "image {} (file {})"
                findings.add(code, example, images[index].get("id"), path, Words(reason))
                if code in UNUSABLE:
                    unusable.add(index)
    return unusable


def _tasks(images: list, root: Path) -> list[Task]:
    hopeless = {"image-type", "image-name", "image-outside"}
    return [
        (index, os.path.join(root, image["file_name"]), image_size(image))
        for index, image in enumerate(images)
        if not hopeless & {code for code, _ in image_problems(image)}
    ]


def _inspected(tasks: list[Task], workers: int) -> Iterator[tuple[Task, Problems]]:
    """Yield each task with its problems, in order."""
    if workers == 1 or len(tasks) < _FEW:
        for task in tasks:
            yield task, inspect_image(task)
        return
    pool = ProcessPoolExecutor(workers, mp_context=_context(), initializer=_ignore_interrupt)
    try:
        yield from zip(tasks, pool.map(inspect_image, tasks, chunksize=_CHUNK), strict=True)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decoded images was killed, perhaps for memory: try fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # fewer than the machine has, in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _context() -> multiprocessing.context.BaseContext:
    """Processes that do not inherit this one's memory; torch is imported once for all of them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the work


def inspect_image(task: Task) -> Problems:
    """Find what is wrong with one file.

    Args:
        task: index, path, and stated (width, height) in pixels or None.

    Returns:
        Codes of `findings.CODES`, each with its particulars.
    """
    _, path, stated = task
    if not os.path.lexists(path):
        return [("image-missing", "")]
    if not os.path.isfile(path):
        return [("image-unreadable", "not a file")]
    try:
        if not os.path.getsize(path):
            return [("image-unreadable", "the file is empty")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return _image_findings(image, stated)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        text = str(error).replace(repr(path), "the file").replace(path, "the file")
        text = " ".join(text.split())
        code = "image-truncated" if "truncated" in text.lower() else "image-unreadable"
        return [(code, f"{type(error).__name__}: {text}")]


def _image_findings(image: Image.Image, stated: tuple[int, int] | None) -> Problems:
    mode, size, problems = image.mode, image.size, []
    orientation = _orientation(image)
    if size[0] * size[1] > (Image.MAX_IMAGE_PIXELS or float("inf")):
        problems.append(("image-huge", f"{size[0]} x {size[1]}"))
    if image.format == "JPEG":
        image.draft(None, (1, 1))  # all of the file is decoded, but an eighth of the pixels made
    image.load()
    true = size[::-1] if orientation >= 5 else size
    if orientation > 1:
        problems.append(("image-exif", f"orientation {orientation}"))
    if stated is not None and true != stated:
        turned = " after EXIF's rotation" if orientation >= 5 else ""
        sizes = f"{true[0]} x {true[1]}{turned}, stated {stated[0]} x {stated[1]}"
        problems.append(("image-size", sizes))
    code = _mode_code(mode)
    if code:
        problems.append((code, f"mode {mode}"))
    return problems


def _mode_code(mode: str) -> str | None:
    if mode.startswith("I") or mode == "F":
        return "image-16-bit"
    codes = {"CMYK": "image-cmyk", "L": "image-gray", "1": "image-gray", "LA": "image-alpha"}
    return codes.get(mode, "image-alpha" if mode in ("RGBA", "PA", "La", "RGBa") else None)


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation as Detectron2 reads it: 1, upright, where EXIF is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:
        return 1
    return value if value in range(2, 9) else 1
