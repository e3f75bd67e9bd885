"""The paper's COCO splits as annotation files, made from the official ones, offline.

minival holds the images of val2017 and valminusminival the other ones of val2014; ids agree between
the two years, file names do not. An image or annotation is kept as its JSON text, a fifth of what
it takes as Python objects.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..atomic import replacing
from ..errors import UserError
from .records import scan_coco

# Appendix B of the paper: 5,000 + 35,504, and with train2014's 82,783 trainval35k's 118,287.
FULL_VAL, FULL_MINIVAL, FULL_TRAINVAL35K = 40_504, 5_000, 118_287
KINDS = ("instances", "person_keypoints")
PARTS = ("minival", "valminusminival")


@dataclass
class CocoFile:
    """A COCO annotation file.

    Attributes:
        path: where it is, or is to be.
        header: the sections other than images and annotations.
        images: JSON text of each image by its id.
        annotations: image id and JSON text of each annotation by its id.
    """

    path: Path
    header: dict = field(default_factory=dict)
    images: dict[int, str] = field(default_factory=dict)
    annotations: dict[int, tuple[int, str]] = field(default_factory=dict)

    def add_image(self, image: dict) -> None:
        if image["id"] in self.images:
            raise UserError(f"{self.path} lists image id {image['id']} twice")
        self.images[image["id"]] = json.dumps(image)

    def add_annotation(self, annotation: dict) -> None:
        if annotation["id"] in self.annotations:
            raise UserError(f"{self.path} has annotation id {annotation['id']} twice")
        self.annotations[annotation["id"]] = (annotation["image_id"], json.dumps(annotation))


def read_coco(
    path: Path, *, annotations: bool = True, progress: Callable[[int], object] = lambda n: None
) -> CocoFile:
    """Read a COCO annotation file.

    Args:
        annotations: keep them; False where only the images matter.
        progress: called with the number of characters read since the last call.

    Raises:
        UserError: if it is absent, not COCO JSON, has no image, an image or annotation id twice, or
            an annotation of an image that it does not list.
    """
    file = CocoFile(path)
    keep = file.add_annotation if annotations else lambda annotation: None
    try:
        each = {"images": file.add_image, "annotations": keep}
        file.header = scan_coco(path, each, progress)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not a JSON file: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a JSON file: it is not UTF-8 text") from error
    except KeyError as error:
        raise UserError(f"{path}: an image or annotation has no {error}") from error
    except (TypeError, AssertionError, RecursionError) as error:
        raise UserError(f"{path} is not a COCO annotation file: {error}") from error
    for section in ("images", "annotations"):
        if section not in file.header:
            raise UserError(f"{path} has no {section!r}: it is not a COCO annotation file")
        del file.header[section]
    if not file.images:
        raise UserError(f"{path} lists no image")
    for i, (image, _) in file.annotations.items():
        if image not in file.images:
            raise UserError(f"{path}: annotation {i} is of image {image}, which is not listed")
    return file


def split(val: CocoFile, minival: set[int], source: Path) -> list[CocoFile]:
    """Divide val2014 into minival and valminusminival, in the order of the file.

    Args:
        minival: image ids of val2017.
        source: the file with these ids, for messages.

    Raises:
        UserError: if val2014 lacks some of them, or if it is the full set and they are not 5,000.
    """
    absent = sorted(minival - val.images.keys())
    if absent:
        raise UserError(
            f"{len(absent)} of the {len(minival)} images of {source} are not in {val.path} "
            f"(the first: {absent[0]}): both must be the official files, or the same part of them"
        )
    if len(val.images) == FULL_VAL and len(minival) != FULL_MINIVAL:
        raise UserError(
            f"{source} lists {len(minival):,} images, not the {FULL_MINIVAL:,} of val2017, beside "
            f"all {FULL_VAL:,} of val2014"
        )
    kind = val.path.name.removesuffix("_val2014.json")
    parts = []
    for part in PARTS:
        ids = minival if part == "minival" else val.images.keys() - minival
        parts.append(
            CocoFile(
                val.path.with_name(f"{kind}_{part}2014.json"),
                val.header,
                {i: text for i, text in val.images.items() if i in ids},
                {i: found for i, found in val.annotations.items() if found[0] in ids},
            )
        )
    return parts


def differences(val: CocoFile, parts: list[CocoFile], minival: set[int] | None) -> list[str]:
    """Say what keeps two files from being a division of val2014; nothing if they are one.

    Args:
        minival: image ids of val2017; None if they are not known.
    """
    small, rest = parts
    sizes = (FULL_MINIVAL, FULL_VAL - FULL_MINIVAL)
    found = []

    def tell(of: CocoFile, what: str, ids: set[int]) -> None:
        if ids:
            found.append(f"{of.path}: {len(ids)} {what} (the first: {min(ids)})")

    if len(val.images) == FULL_VAL:
        found += [
            f"{part.path} has {len(part.images):,} images, not {size:,}"
            for part, size in zip(parts, sizes, strict=True)
            if len(part.images) != size
        ]
    tell(small, f"images are in {rest.path.name} too", small.images.keys() & rest.images.keys())
    tell(
        small,
        f"annotation ids are in {rest.path.name} too",
        small.annotations.keys() & rest.annotations.keys(),
    )
    lost = val.images.keys() - small.images.keys() - rest.images.keys()
    tell(val, "images are in neither file", lost)
    if minival is not None:
        tell(small, "images are not in val2017", small.images.keys() - minival)
        tell(small, "images of val2017 are missing", minival - small.images.keys())
    for part in parts:
        tell(part, f"images are not in {val.path.name}", part.images.keys() - val.images.keys())
        if part.header.get("categories") != val.header.get("categories"):
            found.append(f"{part.path}: other categories than in {val.path.name}")
        tell(part, f"images have other entries than in {val.path.name}", _changed_images(val, part))
        tell(part, f"images have other annotations than in {val.path.name}", _changed(val, part))
    return found


def _changed_images(val: CocoFile, part: CocoFile) -> set[int]:
    shared = val.images.keys() & part.images.keys()
    return {i for i in shared if not _same(val.images[i], part.images[i])}


def _changed(val: CocoFile, part: CocoFile) -> set[int]:
    """Find the images of `part`, known to val2014, whose annotations are not val2014's."""
    changed = set()
    for i in val.annotations.keys() | part.annotations.keys():
        image, text = val.annotations.get(i, (None, ""))
        other_image, other_text = part.annotations.get(i, (None, ""))
        if image != other_image or not _same(text, other_text):
            changed |= {image, other_image}
    return changed & val.images.keys() & part.images.keys()


def _same(text: str, other: str) -> bool:
    return text == other or json.loads(text) == json.loads(other)


def write_coco(files: list[CocoFile]) -> None:
    """Write all files or none, each whole.

    Raises:
        UserError: if the folder is not writable or the disk is full.
    """
    with contextlib.ExitStack() as stack:
        for file in files:
            temporary = stack.enter_context(replacing(file.path))
            header = json.dumps(file.header)[1:-1]
            with open(temporary, "w", encoding="utf-8") as output:
                output.write(f'{{{header}{", " if header else ""}"images": [')
                output.write(",\n".join(file.images.values()))
                output.write('], "annotations": [')
                output.write(",\n".join(text for _, text in file.annotations.values()))
                output.write("]}\n")


@contextlib.contextmanager
def _step(verb: str, path: Path) -> Iterator[Callable[[int], object]]:
    """Show a bar of the characters read on a terminal, and a line elsewhere."""
    if sys.stderr.isatty() and path.exists():
        size = path.stat().st_size
        with tqdm(desc=f"{verb} {path.name}", total=size, unit="B", unit_scale=True) as bar:
            yield bar.update
    else:
        print(f"{verb} {path.name}", file=sys.stderr, flush=True)
        yield lambda characters: None


def _read(path: Path, *, annotations: bool = True) -> CocoFile:
    with _step("reading", path) as progress:
        return read_coco(path, annotations=annotations, progress=progress)


def _val2017_ids(folder: Path) -> tuple[set[int] | None, Path]:
    """Read the image ids of val2017 from either of its files; None if both are absent."""
    for kind in KINDS:
        path = folder / f"{kind}_val2017.json"
        if path.exists():
            return set(_read(path, annotations=False).images), path
    return None, folder / "instances_val2017.json"


def _read_val2014(
    folder: Path, kind: str, outputs: list[Path], check: bool, say: Callable
) -> CocoFile | None:
    """Read val2014; None, which is said, where there are no keypoints to divide or check."""
    path = folder / f"{kind}_val2014.json"
    if kind == "instances":
        val = _read(path)
        if len(val.images) != FULL_VAL:
            say(
                f"warning: {path.name} has {len(val.images):,} images, not the {FULL_VAL:,} of the "
                "full val2014: the splits are not the paper's"
            )
        return val
    if not path.exists():
        say(f"{path.name} is not there: no {kind} files were {'checked' if check else 'made'}")
    elif check and not any(file.exists() for file in outputs):
        say(f"no {kind} files were checked: there are none")
    else:
        return _read(path)
    return None


def _count_trainval35k(val: CocoFile, rest: CocoFile, folder: Path, say: Callable) -> list[str]:
    """Say what is wrong with train2014 and valminusminival as one training set."""
    path = folder / "instances_train2014.json"
    if not path.exists():
        say(f"{path.name} is not there: the images of coco_trainval35k were not counted")
        return []
    train = _read(path, annotations=False).images.keys()
    if shared := train & rest.images.keys():
        return [f"{path}: {len(shared)} images are in {rest.path.name} too"]
    total = len(train) + len(rest.images)
    if len(val.images) == FULL_VAL and total != FULL_TRAINVAL35K:
        return [f"{path} and {rest.path.name} have {total:,} images, not {FULL_TRAINVAL35K:,}"]
    say(f"coco_trainval35k: {len(train):,} + {len(rest.images):,} = {total:,} images")
    return []


def prepare_splits(
    coco: Path, *, check: bool = False, force: bool = False, say: Callable[[str], object] = print
) -> None:
    """Make, or with `check` only verify, the paper's annotation files below `coco/annotations`.

    Args:
        coco: holds `annotations/` with the official `instances_val2014.json` and, for the image
            ids, a val2017 file; `person_keypoints_val2014.json` is divided too if it is there.
        force: replace files that are there.
        say: called with each line for the user.

    Raises:
        UserError: if a file is absent or wrong, would be overwritten, or the splits are not the
            division of val2014 that they should be. Nothing is written then.
    """
    folder = coco / "annotations"
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: --coco names the folder with annotations/")
    outputs = {kind: [folder / f"{kind}_{part}2014.json" for part in PARTS] for kind in KINDS}
    there = [path for kind in KINDS for path in outputs[kind] if path.exists()]
    if there and not check and not force:
        raise UserError(f"{there[0]} is there: --check verifies it, --force makes it again")
    ids, source = _val2017_ids(folder)
    if ids is None and not check:
        raise UserError(f"{source} does not exist: its image ids are those of minival")
    if ids is None:
        say(f"{source.name} is not there: minival's images were not compared with val2017's")
    problems, made = [], []
    for kind in KINDS:
        val = _read_val2014(folder, kind, outputs[kind], check, say)
        if val is None:
            continue
        parts = [_read(file) for file in outputs[kind]] if check else split(val, ids, source)
        problems += differences(val, parts, ids)
        if kind == "instances":
            problems += _count_trainval35k(val, parts[1], folder, say)
        made += parts
    if problems:
        raise UserError("; ".join(problems))
    if not check:
        write_coco(made)
    verb = "verified" if check else "wrote"
    for part in made:
        images, annotations = len(part.images), len(part.annotations)
        say(f"{verb} {part.path}: {images:,} images, {annotations:,} annotations")
