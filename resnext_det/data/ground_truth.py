"""Pictures of a data set's ground truth as training sees it, after augmentation."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    Metadata,
    MetadataCatalog,
    detection_utils,
    get_detection_dataset_dicts,
)
from detectron2.structures import Instances, PolygonMasks
from detectron2.utils.env import seed_all_rng
from PIL import Image

from ..errors import UserError, one_line
from .coco_splits import require_files, require_registered
from .drawing import Shown, bones_of, draw_objects, fitting_scale
from .mapper import NamingDatasetMapper
from .sheets import on_sheet, save_picture, with_title

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
SHEET_LIMIT = 100  # images; a larger sheet would not open in a viewer
_COLUMNS = 4  # of a sheet


class _CrowdKeepingMapper(NamingDatasetMapper):
    """Also keeps the boxes of crowds, which training leaves out, as pairs of class and box."""

    def _transform_annotations(
        self, dataset_dict: dict, transforms: object, image_shape: tuple[int, int]
    ) -> None:
        dataset_dict["crowds"] = []
        for item in dataset_dict["annotations"]:
            if item.get("iscrowd", 0):
                box = {k: item[k] for k in ("bbox", "bbox_mode", "category_id")}
                box = detection_utils.transform_instance_annotations(box, transforms, image_shape)
                dataset_dict["crowds"].append((box["category_id"], box["bbox"]))
        super()._transform_annotations(dataset_dict, transforms, image_shape)


def draw_data(
    cfg: CfgNode,
    *,
    train: bool = True,
    num: int = 16,
    augment: bool = True,
    folder: Path | None = None,
    sheet: Path | None = None,
) -> list[Path]:
    """Draw ground truth as it comes out of training's data mapper.

    Images are evenly spread over the data set. The same `cfg.SEED` (0 where it is not set) gives
    the same pictures.

    Args:
        cfg: its data sets, `INPUT`, `MODEL.MASK_ON` and `MODEL.KEYPOINT_ON` say what is drawn.
        train: `DATASETS.TRAIN` with training's augmentations, without images that training leaves
            out; else `DATASETS.TEST`, resized as in testing.
        num: images, at least 1; all if there are fewer.
        augment: False draws the images as they are.
        folder: for a PNG an image, at the size in which the network gets it (small ones enlarged).
        sheet: for one picture of all, .jpg or .png; at most `SHEET_LIMIT` images.

    Returns:
        The pictures written.

    Raises:
        UserError: for values that are not as above, and data sets that are absent or not readable.
    """
    if num < 1:
        raise UserError(f"--num {num}: at least 1 image is drawn")
    if (folder is None) == (sheet is None):
        raise UserError("name either a folder for pictures or one sheet")
    if sheet is not None:
        if sheet.suffix.lower() not in PICTURE_SUFFIXES:
            raise UserError(f"{sheet}: a sheet is one of {', '.join(PICTURE_SUFFIXES)}")
        if num > SHEET_LIMIT:
            raise UserError(f"--num {num}: a sheet holds up to {SHEET_LIMIT}; draw into a folder")
    names = cfg.DATASETS.TRAIN if train else cfg.DATASETS.TEST
    records = _records(cfg, names, train)
    chosen = np.linspace(0, len(records) - 1, min(num, len(records)), dtype=int)
    metadata = MetadataCatalog.get(names[0])
    pictures = _pictures(cfg, records, chosen, metadata, train=train, augment=augment)
    bones = bones_of(metadata)
    if sheet is not None:
        drawn = (_draw(*rest, bones, shrink=True) for _, *rest in pictures)
        save_picture(on_sheet(drawn, _COLUMNS), sheet)
        return [sheet]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be made: {error.strerror}") from error
    written = []
    for index, (record, title, image, objects) in zip(chosen, pictures, strict=True):
        png = folder / f"{index:06d}_{Path(record['file_name']).stem}.png"
        save_picture(_draw(title, image, objects, bones, shrink=False), png)
        written.append(png)
    return written


def _records(cfg: CfgNode, names: Sequence[str], train: bool) -> list[dict]:
    if not names:
        raise UserError(f"DATASETS.{'TRAIN' if train else 'TEST'} names no data set")
    require_registered(names)
    for name in names:
        require_files(name)
    try:
        return get_detection_dataset_dicts(
            list(names),
            filter_empty=train and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
            if train and cfg.MODEL.KEYPOINT_ON
            else 0,
        )
    except AssertionError as error:
        raise UserError(f"{', '.join(names)}: {one_line(error)}") from error


def _pictures(
    cfg: CfgNode,
    records: Sequence[dict],
    chosen: Sequence[int],
    metadata: Metadata,
    *,
    train: bool,
    augment: bool,
) -> Iterator[tuple[Mapping, str, np.ndarray, list[Shown]]]:
    """Yield each chosen record, its title, RGB image and objects."""
    options = NamingDatasetMapper.from_config(cfg, train)
    options["is_train"] = True  # else annotations are dropped
    options["precomputed_proposal_topk"] = None  # boxes of another detector are not ground truth
    if not augment:
        options["augmentations"] = []
    mapper = _CrowdKeepingMapper(**options)
    seed = max(cfg.SEED, 0)
    for index in map(int, chosen):
        record = records[index]
        seed_all_rng((seed + index) % 2**32)  # a picture does not depend on those before it
        example = mapper(record)
        image = detection_utils.convert_image_to_rgb(
            example["image"].permute(1, 2, 0), cfg.INPUT.FORMAT
        )
        before = f"{example['width']} x {example['height']}"
        after = f"{image.shape[1]} x {image.shape[0]}"
        size = before if before == after else f"{before} as {after}"
        title = f"{Path(record['file_name']).name}, {size}"
        yield record, title, image, _objects(example, metadata)


def _objects(example: Mapping, metadata: Metadata) -> list[Shown]:
    names = metadata.get("thing_classes") or ()

    def label(number: int) -> str:
        return names[number] if number < len(names) else str(number)

    shown = [
        Shown(box, number, f"{label(number)} (crowd)", crowd=True)
        for number, box in example.get("crowds", ())
    ]
    instances = example.get("instances")
    if instances is None:
        return shown
    for i, (box, number) in enumerate(
        zip(instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist(), strict=True)
    ):
        shown.append(Shown(box, number, label(number), **_shape(instances, i)))
    return shown


def _shape(instances: Instances, i: int) -> dict:
    shape = {}
    if instances.has("gt_masks"):
        masks = instances.gt_masks
        if isinstance(masks, PolygonMasks):
            shape["polygons"] = [p.reshape(-1, 2) for p in masks.polygons[i]]
        else:
            shape["bitmask"] = masks.tensor[i].numpy().astype(bool)
    if instances.has("gt_keypoints"):
        shape["keypoints"] = instances.gt_keypoints.tensor[i].numpy()
    return shape


def _draw(
    title: str,
    image: np.ndarray,
    objects: Sequence[Shown],
    bones: Sequence[tuple[int, int]],
    *,
    shrink: bool,
) -> Image.Image:
    scale = fitting_scale(*image.shape[:2])
    if not shrink:
        scale = max(1, scale)
    return with_title(draw_objects(image, objects, bones, scale=scale), title)
