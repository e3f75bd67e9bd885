"""Pascal VOC folders (Annotations/*.xml, JPEGImages/, ImageSets/Main/) to COCO JSON.

VOC counts pixels from 1 and both corners belong to the box, so a box that covers a whole image of
W x H pixels is (1, 1, W, H). COCO's edges lie between pixels, from 0: (x, y, width, height) =
(xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1).
"""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.parsers import expat

from ..errors import UserError
from .formats import IMAGE_SUFFIXES, Converter, decode, read_classes, read_text_file

# in the order of the VOC development kit (VOCinit.m), which is that of the alphabet
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_KEPT_OF_IMAGE = {"filename", "size", "object"}
_KEPT_OF_OBJECT = {"name", "bndbox", "difficult"}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def convert_voc(
    root: Path,
    split: str | None = None,
    *,
    drop_difficult: bool = False,
    classes_from: Path | None = None,
) -> tuple[dict, list[str]]:
    """Convert a VOC folder; `file_name`s are relative to its JPEGImages.

    Objects marked difficult, which VOC's evaluation ignores, keep `iscrowd` 0 and get `difficult`
    1, a key that COCO's evaluation does not know: there they count as any other. (The key `ignore`
    is no way out: pycocotools overwrites it with `iscrowd`, and Detectron2 refuses such files.)

    Args:
        root: the folder with Annotations.
        split: a list in ImageSets/Main, without `.txt`; None for every file in Annotations.
        drop_difficult: leave difficult objects out.
        classes_from: COCO JSON whose class ids are taken over. Without it ids count from 1 over
            VOC's 20 classes if all are of these, else over the classes found, by name.

    Returns:
        The content of the COCO JSON file, and lines that say what was changed and lost.

    Raises:
        UserError: for anything absent, malformed or contradictory, naming the file.
    """
    converter = Converter()
    difficult = 0
    for file in _annotation_files(root, split):
        tree = read_xml(file)
        size = converter.add_image(root / "JPEGImages", _image_of(root, file, tree), file)
        _check_size(tree, size, file)
        converter.lost.update(e.tag for e in tree if e.tag not in _KEPT_OF_IMAGE)
        for item in tree.iterfind("object"):
            hard = (item.findtext("difficult") or "0").strip() not in ("0", "")
            difficult += hard
            if hard and drop_difficult:
                continue
            converter.lost.update(f"object/{e.tag}" for e in item if e.tag not in _KEPT_OF_OBJECT)
            name = (item.findtext("name") or "").strip()
            if not name:
                raise UserError(f"{file}: an object has no <name>: add it")
            x0, y0, x1, y1 = _corners(item, name, file)
            converter.add_object(name, file, (x0 - 1, y0 - 1, x1, y1), difficult=int(hard))
    if difficult:
        converter.notes.append(
            f"{difficult} difficult objects left out"
            if drop_difficult
            else f'{difficult} difficult objects kept, with "difficult": 1; COCO evaluation counts '
            "them: --drop-difficult leaves them out"
        )
    if converter.clipped:
        converter.notes.append("VOC counts pixels from 1: boxes that begin at 0 are among these")
    if classes_from:
        classes = read_classes(classes_from)
    else:
        found = {name for name, _, _ in converter.objects}
        names = VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found)
        classes = {name: i for i, name in enumerate(names, start=1)}
    return converter.finish(classes, told_by=str(classes_from or root)), converter.report()


def read_xml(file: Path) -> ElementTree.Element:
    """Parse XML without document types, so without entities that expand to gigabytes.

    Raises:
        UserError: if it is not well-formed, has a document type or no <annotation> as its root.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> None:
        raise UserError(f"{file} has a <!DOCTYPE>, which VOC files do not need: remove it")

    parser.StartDoctypeDeclHandler = refuse
    content = read_text_file(file)
    try:
        parser.Parse(content, True)
    except UserError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two: its encoding
        raise UserError(f"{file} is not well-formed XML: {error}") from error
    root = builder.close()
    if root.tag != "annotation":
        raise UserError(f"{file} is no VOC annotation: its root is <{root.tag}>")
    return root


def _annotation_files(root: Path, split: str | None) -> list[Path]:
    folder = root / "Annotations"
    for needed in (folder, root / "JPEGImages"):
        if not needed.is_dir():
            raise UserError(f"{needed} does not exist: name the folder that holds {needed.name}")
    if split is None:
        return sorted(folder.glob("*.xml"))
    lists = root / "ImageSets" / "Main"
    file = lists / f"{split}.txt"
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in lists.glob("*.txt"))) or "no list"
        raise UserError(f"{file} does not exist; {lists} has {known}")
    lines = (line.strip() for line in decode(read_text_file(file), file).splitlines())
    names = list(dict.fromkeys(line for line in lines if line))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{file} names {name!r}, outside of {folder}: mend the name")
        if not (folder / f"{name}.xml").is_file():
            raise UserError(f"{file} names {name!r}, but {folder / name}.xml does not exist")
    return [folder / f"{name}.xml" for name in names]


def _image_of(root: Path, file: Path, tree: ElementTree.Element) -> Path:
    """The image with the annotation's name, as in VOC, or else the one that <filename> says."""
    named = root / "JPEGImages" / file.stem
    for suffix in IMAGE_SUFFIXES:
        image = named.with_name(named.name + suffix)
        if image.is_file():
            return image
    said = (tree.findtext("filename") or "").strip()
    return root / "JPEGImages" / (said or f"{file.stem}.jpg")


def _check_size(tree: ElementTree.Element, size: tuple[int, int], file: Path) -> None:
    said = [_number(tree, f"size/{side}", file) for side in ("width", "height")]
    if tuple(said) != size:
        raise UserError(
            f"{file} says its image has {said[0]:g} x {said[1]:g} pixels, but it has "
            f"{size[0]} x {size[1]}: the boxes would be misplaced; mend <size> or the image"
        )


def _corners(item: ElementTree.Element, name: str, file: Path) -> list[float]:
    x0, y0, x1, y1 = corners = [_number(item, f"bndbox/{c}", file) for c in _CORNERS]
    if x1 < x0 or y1 < y0:
        shown = ", ".join(f"{c} {v:g}" for c, v in zip(_CORNERS, corners, strict=True))
        raise UserError(f"{file}: the box of a {name} ends before it begins ({shown}): mend it")
    return corners


def _number(node: ElementTree.Element, path: str, file: Path) -> float:
    text = node.findtext(path)
    if text is None:
        raise UserError(f"{file}: <{node.tag}> has no {path}: add it")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{file}: {path} is {text.strip()!r}, not a number: mend it")
    return value
