"""The paper's COCO splits, `coco_trainval35k` and `coco_minival`, on either layout of the files.

minival holds the images of val2017 and trainval35k those of train2017; only file names and folders
differ. So the same config runs on a 2014 tree with the minival annotation files and on a 2017 tree.
The same images with persons' keypoints are `keypoints_coco_trainval35k` and
`keypoints_coco_minival`.
"""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import suggest
from ..errors import UserError, one_line
from .records import load_coco_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """One of the paper's splits.

    Attributes:
        layouts: for each layout, pairs of an image folder and an annotation file below `coco/`; the
            images of all pairs together are the split.
        num_images: images in the full split.
        metadata_of: Detectron2's data set with the same classes.
    """

    layouts: dict[str, tuple[tuple[str, str], ...]]
    num_images: int
    metadata_of: str = "coco_2017_val"


# Image counts: Appendix B (82,783 + 35,504, and 5,000).
SPLITS = {
    "coco_trainval35k": Split(
        {
            "2014": (
                ("train2014", "annotations/instances_train2014.json"),
                ("val2014", "annotations/instances_valminusminival2014.json"),
            ),
            "2017": (("train2017", "annotations/instances_train2017.json"),),
        },
        118_287,
    ),
    "coco_minival": Split(
        {
            "2014": (("val2014", "annotations/instances_minival2014.json"),),
            "2017": (("val2017", "annotations/instances_val2017.json"),),
        },
        5_000,
    ),
}


def _with_keypoints(split: Split) -> Split:
    """The same images with COCO's person_keypoints files, which list images without persons too."""
    layouts = {
        layout: tuple(
            (images, file.replace("instances_", "person_keypoints_")) for images, file in pairs
        )
        for layout, pairs in split.layouts.items()
    }
    return replace(split, layouts=layouts, metadata_of="keypoints_coco_2017_val")


KEYPOINT_SPLITS = {f"keypoints_{name}": _with_keypoints(split) for name, split in SPLITS.items()}
_ALL_SPLITS = {**SPLITS, **KEYPOINT_SPLITS}


def datasets_root() -> Path:
    """Return the root of all data sets: `$DETECTRON2_DATASETS`, or `datasets` as in Detectron2."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def find_split(name: str, coco: Path) -> tuple[tuple[Path, Path], ...]:
    """Find the files of a split below a COCO folder; the 2014 layout wins where both are there.

    Args:
        name: a key of `SPLITS` or `KEYPOINT_SPLITS`.
        coco: the folder that holds `annotations/` and the image folders.

    Returns:
        Pairs of an image folder and an annotation file.

    Raises:
        UserError: if neither layout is complete, naming each path that was looked for.
    """
    looked_for = []
    for layout, pairs in _ALL_SPLITS[name].layouts.items():
        found = tuple((coco / images, coco / annotations) for images, annotations in pairs)
        missing = [str(p.relative_to(coco)) for pair in found for p in pair if not p.exists()]
        if not missing:
            return found
        looked_for.append(f"{layout} layout lacks {', '.join(missing)}")
    raise UserError(
        f"dataset {name} is not at {coco.absolute()} ({'; '.join(looked_for)}): set "
        "DETECTRON2_DATASETS to the folder that holds coco/"
    )


def require_registered(names: Iterable[str]) -> None:
    """Check that data sets are known by their names.

    Raises:
        UserError: for the first that is not.
    """
    for name in names:
        if name not in DatasetCatalog:
            raise UserError(f"dataset {name} is not registered{suggest(name, DatasetCatalog)}")


def require_files(name: str) -> None:
    """Check that a data set's annotation file and image folder are there, before a long training.

    Raises:
        UserError: if they are not; for data sets of unknown places nothing is checked.
    """
    if name in _ALL_SPLITS:
        find_split(name, datasets_root() / "coco")
        return
    metadata = MetadataCatalog.get(name)
    for key in ("json_file", "image_root"):
        path = metadata.get(key)
        if path is not None and "://" not in path and not Path(path).exists():
            raise UserError(f"dataset {name}: {path} does not exist")


def load_coco_file(json_file: Path, image_root: Path, dataset_name: str) -> list[dict]:
    """Read a COCO annotation file in Detectron2's dataset format.

    Raises:
        UserError: if the file cannot be read, is not COCO JSON, lists no image, or lists other
            categories than the dataset has.
    """
    try:
        records = load_coco_records(json_file, image_root, dataset_name)
    except OSError as error:
        raise UserError(f"cannot read {json_file}: {error.strerror}") from error
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,  # integers beyond what an RLE or a keypoint can hold
        RecursionError,
    ) as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"{json_file} is not a COCO annotation file: {reason}") from error
    except AssertionError as error:
        if "thing_classes" in str(error):
            reason = f"lists other categories than {dataset_name} has"
        else:
            reason = f"is not valid COCO: {one_line(error)}"
        raise UserError(f"{json_file} {reason}") from error
    if not records:
        raise UserError(f"{json_file} lists no image")
    return records


def load_split(name: str) -> list[dict]:
    """Load a split in Detectron2's dataset format and record its files in its metadata.

    Raises:
        UserError: if the files are absent or not readable.
    """
    pairs = find_split(name, datasets_root() / "coco")
    records = [r for images, file in pairs for r in load_coco_file(file, images, name)]
    if len(records) != _ALL_SPLITS[name].num_images:
        logger.warning(
            "%s has %d images here, not the %d of the full split: "
            "its AP is not comparable with published ones",
            name,
            len(records),
            _ALL_SPLITS[name].num_images,
        )
    if len(pairs) == 1:
        images, file = pairs[0]
        # vars(): Metadata refuses a second value, but the tree may move within one process
        vars(MetadataCatalog.get(name)).update(json_file=str(file), image_root=str(images))
    return records


def register_coco_splits() -> None:
    """Register all splits with Detectron2, with COCO's 80 classes, or person and its keypoints.

    Files are read when a split is loaded.
    """
    for name, split in _ALL_SPLITS.items():
        if name not in DatasetCatalog:
            metadata = MetadataCatalog.get(split.metadata_of).as_dict()
            for key in ("name", "json_file", "image_root"):
                metadata.pop(key)
            DatasetCatalog.register(name, lambda name=name: load_split(name))
            MetadataCatalog.get(name).set(**metadata)
