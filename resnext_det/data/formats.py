"""What the converters to COCO JSON share: reading files safely, classes, boxes, writing.

No library served. Of those on PyPI, globox 2.9 keeps VOC's coordinates as they are, a pixel off,
and drops `difficult` and polygons; supervision 0.31 has the coordinates right, but drops
`difficult` and ImageSets, numbers classes as they come, draws polygons into masks and needs PyAV
and SciPy; pylabel 0.1 is a pixel off and needs OpenCV, scikit-learn and a Jupyter widget; pybboxes
0.2 converts single boxes and pins NumPy 1.24. None says what it drops.
"""

import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..atomic import replacing
from ..errors import UserError, one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_TEXT_BYTES = 16 * 1024**2  # of one annotation file; VOC's largest has 20 kB
_EXIF_ORIENTATION = 0x0112
_EXIF_ON_ITS_SIDE = (5, 6, 7, 8)


@dataclass
class Converter:
    """Collects images and objects of one split and turns them into COCO's dict.

    Attributes:
        images: COCO's images; ids count from 1 in the order added.
        objects: (class name, file that says so, annotation without ids of itself and its class).
        clipped: boxes that reached out of their image.
        outside: objects left out, as nothing of their box is in the image.
        lost: how often a field was met that COCO JSON here does not keep.
        notes: further lines for the user.
    """

    images: list[dict] = field(default_factory=list)
    objects: list[tuple[str, Path, dict]] = field(default_factory=list)
    clipped: int = 0
    outside: int = 0
    lost: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add_image(self, folder: Path, file: Path, said_by: Path) -> tuple[int, int]:
        """Add an image by its path, recorded relative to `folder`.

        Returns:
            Width and height in pixels, upright as Detectron2 reads the image.

        Raises:
            UserError: if it cannot be read, or lies outside `folder`; names `said_by` too.
        """
        name = os.path.relpath(file, folder)
        if Path(name).parts[0] == os.pardir or Path(name).is_absolute():
            raise UserError(f"{said_by} names {name!r}, outside of {folder}: mend the name")
        width, height = image_size(file, said_by)
        number = len(self.images) + 1
        name = Path(name).as_posix()
        self.images.append({"id": number, "file_name": name, "width": width, "height": height})
        return width, height

    def add_object(
        self, name: str, file: Path, corners: Sequence[float], **fields: object
    ) -> dict | None:
        """Add an object to the last image.

        Args:
            name: its class.
            file: the annotation file, for messages.
            corners: x0, y0, x1, y1 in pixels, of which (0, 0) is the image's upper left edge.
            fields: further keys of the annotation.

        Returns:
            The annotation, or None for a box without area inside the image, which is left out.
        """
        image = self.images[-1]
        limits = (image["width"], image["height"]) * 2
        x0, y0, x1, y1 = kept = [
            min(max(v, 0.0), float(m)) for v, m in zip(corners, limits, strict=True)
        ]
        # half a hundredth of a pixel is rounding, not an error in the data
        moved = any(abs(a - b) > 5e-3 for a, b in zip(kept, corners, strict=True))
        box = [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)]
        if box[2] <= 0 or box[3] <= 0:
            self.outside += 1
            return None
        self.clipped += moved
        item = {"image_id": image["id"], "bbox": box, "area": round(box[2] * box[3], 3)}
        item |= {"iscrowd": 0, **fields}
        self.objects.append((name, file, item))
        return item

    def finish(self, classes: Mapping[str, int], *, told_by: str) -> dict:
        """Number the objects and their classes.

        Args:
            classes: the id of each class.
            told_by: where `classes` are from, for the message.

        Raises:
            UserError: if an object's class is not in `classes`, or there is no image.
        """
        if not self.images:
            raise UserError("no image was found: nothing to convert")
        annotations = []
        for name, file, item in self.objects:
            if name not in classes:
                raise UserError(f"{file}: class {name!r} is not among those of {told_by}")
            number = len(annotations) + 1
            annotations.append({"id": number, "category_id": classes[name], **item})
        categories = [{"id": number, "name": name} for name, number in classes.items()]
        return {"images": self.images, "annotations": annotations, "categories": categories}

    def report(self) -> list[str]:
        """Lines for the user: what was found, changed and lost."""
        lines = [f"{len(self.images)} images, {len(self.objects)} objects"]
        if self.clipped:
            lines.append(f"{self.clipped} boxes reached out of their image and were clipped to it")
        if self.outside:
            lines.append(f"{self.outside} objects have no area inside their image: left out")
        if self.lost:
            fields = ", ".join(f"{name} ({n})" for name, n in sorted(self.lost.items()))
            lines.append(f"not carried over (how often met): {fields}")
        return lines + self.notes


def read_text_file(file: Path) -> bytes:
    """Read an annotation file of at most `MAX_TEXT_BYTES`.

    Raises:
        UserError: if it is absent, not readable or larger.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_TEXT_BYTES:
        raise UserError(f"{file} is larger than {MAX_TEXT_BYTES} bytes: no annotation file is")
    return content


def decode(content: bytes, file: Path) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        UserError: if it is something else.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text ({error.reason}): save it as UTF-8") from error


def image_size(file: Path, said_by: Path) -> tuple[int, int]:
    """Width and height in pixels from the image's header, turned upright as its EXIF data says.

    Raises:
        UserError: if the file is absent or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # nothing is decoded
            with Image.open(file) as image:
                width, height = image.size
                turned = image.getexif().get(_EXIF_ORIENTATION) in _EXIF_ON_ITS_SIDE
    except FileNotFoundError:
        raise UserError(f"{said_by}: its image {file} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = one_line(error)
        raise UserError(f"{said_by}: its image {file} cannot be read: {reason}") from error
    return (height, width) if turned else (width, height)


def read_classes(file: Path) -> dict[str, int]:
    """Read the classes of a COCO JSON file, so that another split gets the same ids.

    Raises:
        UserError: if it is no COCO JSON, or has no categories or repeated ones.
    """
    try:
        categories = json.loads(file.read_text(encoding="utf-8"))["categories"]
        classes = {str(c["name"]): int(c["id"]) for c in categories}
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file} is no COCO JSON with categories: {error!r}") from error
    if not classes or not len(classes) == len(categories) == len(set(classes.values())):
        raise UserError(f"{file} has no categories, or two with one name or id")
    return classes


def write_json(content: Mapping, file: Path) -> None:
    """Write JSON, the whole file or none.

    Raises:
        UserError: if the folder is absent or not writable.
    """
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, allow_nan=False)
