"""COCO image ids for files that may be images of a known data set."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import MetadataCatalog

from ..data.coco_splits import KEYPOINT_SPLITS, SPLITS, datasets_root, find_split
from ..data.shapes import SPLIT_SIZES
from ..errors import UserError

logger = logging.getLogger(__name__)

Image = tuple[str, int, int]  # file name without folders, width, height


def image_ids(dataset: str | None, images: Sequence[Image]) -> list[int]:
    """Give each image an id.

    Args:
        dataset: a name that Detectron2 knows.
        images: distinct or not.

    Returns:
        If all are images of the data set, each by its name and size, their ids in its annotation
        file; else 1, 2, ...
    """
    known = _known_ids(dataset) if dataset else {}
    if images and len(set(images)) == len(images) and all(image in known for image in images):
        logger.info("image ids are those of %s", dataset)
        return [known[image] for image in images]
    return list(range(1, len(images) + 1))


def _known_ids(dataset: str) -> dict[Image, int]:
    """The data set's ids; none where it is not on this machine.

    Images that name and size do not tell apart are left out, and so are those without a size.
    """
    known: dict[Image, int] = {}
    ambiguous = set()
    for file in _annotation_files(dataset):
        try:
            for item in json.loads(file.read_bytes())["images"]:
                key = (Path(item["file_name"]).name, item.get("width"), item.get("height"))
                if known.setdefault(key, item["id"]) != item["id"]:
                    ambiguous.add(key)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is no COCO annotation file: {error!r}") from error
    return {key: number for key, number in known.items() if key not in ambiguous}


def _annotation_files(dataset: str) -> list[Path]:
    if dataset in SPLITS or dataset in KEYPOINT_SPLITS:
        try:
            pairs = find_split(dataset, datasets_root() / "coco")
        except UserError:  # not here
            return []
        return [annotations for _, annotations in pairs]
    if dataset in SPLIT_SIZES:  # not loaded, as that would draw it where it is not yet
        return sorted(datasets_root().glob(f"shapes-v*/annotations/{dataset}.json"))
    file = Path(MetadataCatalog.get(dataset).get("json_file") or "")
    return [file] if file.is_file() else []
