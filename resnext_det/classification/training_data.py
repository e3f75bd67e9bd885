"""The images that a classifier is trained and, between, tested on, in batches of one size."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from torch.utils.data import DataLoader, Dataset

from ..data.coco_splits import datasets_root
from ..data.skipping import SKIPPED, SkippedImages, SkippingDataset
from ..data.stream import BatchStream, SeededDataset, SeededIndex
from ..engine.stopping import leave_stopping_to_the_trainer
from ..errors import UserError
from ..modeling import ImageBatch
from .augmentation import ImageNetAugmentation, crop_and_flip
from .image_set import ImageSet
from .imagenet5k import ClassList, read_class_list
from .protocols import Protocol
from .reading import read_images
from .shape_crops import shape_crops_folder

SHAPE_CROPS = "shape_crops"
_HELD_BYTES = 8 * 2**30  # more than "crop" is meant for
TEST_BATCH = 64  # images a process


def protocol_of(cfg: CfgNode) -> Protocol:
    """How the images of a config's test set are tested: one centre crop.

    Raises:
        UserError: for sizes that do not go together.
    """
    own = cfg.CLASSIFIER
    shorter = own.RESIZE if own.AUGMENTATION == "imagenet" else own.SIZE
    try:
        return Protocol(size=own.SIZE, resize=shorter, interpolation=own.INTERPOLATION)
    except UserError as error:
        raise UserError(f"CLASSIFIER: {error}") from error


def classes_of(cfg: CfgNode) -> ClassList | None:
    """The list that `CLASSIFIER.CLASSES` names, of ImageNet-5K; None for all of a data set.

    Raises:
        UserError: if it cannot be read, or does not have `CLASSIFIER.NUM_CLASSES` classes.
    """
    if not cfg.CLASSIFIER.CLASSES:
        return None
    known = read_class_list(Path(cfg.CLASSIFIER.CLASSES))
    _require_classes(cfg, len(known.classes), cfg.CLASSIFIER.CLASSES)
    return known


def read_set(cfg: CfgNode, split: str) -> ImageSet:
    """List the images of `DATASETS.TRAIN` or `DATASETS.TEST`.

    A relative path is below `$DETECTRON2_DATASETS`; "shape_crops" is the embedded set.

    Args:
        cfg: of a classifier.
        split: "train" or "test".

    Raises:
        UserError: if there is not one, it cannot be read, or has other classes than the network.
    """
    key = split.upper()
    names = cfg.DATASETS[key]
    if len(names) != 1:
        raise UserError(f"DATASETS.{key} {list(names)}: a classifier takes one data set")
    # an absolute path stays as it is
    path = shape_crops_folder() if names[0] == SHAPE_CROPS else datasets_root() / names[0]
    is_plain = not (glob.has_magic(names[0]) or "{" in names[0] or Path(names[0]).is_absolute())
    if is_plain and not path.exists():
        flag = {"train": "--train-data", "test": "--val-data"}[split]
        raise UserError(
            f"DATASETS.{key} {names[0]} is not below $DETECTRON2_DATASETS ({path}): say where the "
            f"images are with --data or {flag}"
        )
    known = classes_of(cfg)
    if known is None:
        images = read_images(path, split)
        if split == "train":
            _require_classes(cfg, len(images.classes), str(images.root))
        elif len(images.classes) != cfg.CLASSIFIER.NUM_CLASSES:
            raise UserError(
                f"{images.root} has {len(images.classes)} classes to test, the network "
                f"{cfg.CLASSIFIER.NUM_CLASSES} (CLASSIFIER.NUM_CLASSES): name test images of the "
                "same classes (--val-data)"
            )
    elif split == "train":
        images = read_images(path, split, known.classes, subset=True)
    else:  # Section 5.2 tests on ImageNet-1K's validation set
        images = read_images(path, split, known.classes_1k)
    return images


def _require_classes(cfg: CfgNode, count: int, where: str) -> None:
    if count != cfg.CLASSIFIER.NUM_CLASSES:
        raise UserError(
            f"{where} has {count} classes, CLASSIFIER.NUM_CLASSES is "
            f"{cfg.CLASSIFIER.NUM_CLASSES}: set CLASSIFIER.NUM_CLASSES {count}"
        )


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """Build the training loader; its `batch_sampler` is a `BatchStream`, its batches `ImageBatch`.

    Up to `DATALOADER.MAX_SKIPPED_IMAGES` images that cannot be used are left out, and listed in
    `OUTPUT_DIR/skipped_images.jsonl`.

    Raises:
        UserError: as `read_set`, or if too many images cannot be used.
    """
    images = read_set(cfg, "train")
    limit = cfg.DATALOADER.MAX_SKIPPED_IMAGES
    skipped = SkippedImages(Path(cfg.OUTPUT_DIR) / SKIPPED, limit)
    if cfg.CLASSIFIER.AUGMENTATION == "crop":
        kept, pixels = hold(images, protocol_of(cfg), skipped)
        dataset = CroppedInMemory(images, kept, pixels, mean_colour(cfg), flip=_flips(cfg))
    else:
        dataset = AugmentedImages(images, augmentation_of(cfg), skipped)

    def order(seed: int) -> object:
        return TrainingSampler(len(images), seed=seed)._infinite_indices()

    stream = BatchStream(
        order,
        images_per_batch=cfg.SOLVER.IMS_PER_BATCH,
        accumulate=cfg.SOLVER.ACCUM_STEPS,
        seed=max(cfg.SEED, 0),
    )
    return _loader(cfg, dataset, batch_sampler=stream)


def build_test_loader(cfg: CfgNode) -> DataLoader:
    """Build the loader of this process's share of the test set; its batches are `ImageBatch`.

    Raises:
        UserError: as `read_set`; an image that cannot be read is an error when it is met.
    """
    images = read_set(cfg, "test").limited(cfg.TEST.NUM_IMAGES or None)
    return _loader(
        cfg,
        TestImages(images, protocol_of(cfg)),
        sampler=InferenceSampler(len(images)),
        batch_size=min(TEST_BATCH, cfg.SOLVER.IMS_PER_BATCH),
    )


def _loader(cfg: CfgNode, dataset: Dataset, **batches: object) -> DataLoader:
    """Build a loader of `ImageBatch`; `batches` say which images are in which."""
    return DataLoader(
        dataset,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_collate,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
        worker_init_fn=leave_stopping_to_the_trainer,
        **batches,
    )


def augmentation_of(cfg: CfgNode) -> ImageNetAugmentation:
    """The augmentation that `CLASSIFIER` describes.

    Raises:
        UserError: for values out of range.
    """
    own = cfg.CLASSIFIER
    return ImageNetAugmentation(
        own.SIZE, own.JITTER, own.LIGHTING, own.INTERPOLATION, flip=_flips(cfg)
    )


def _flips(cfg: CfgNode) -> bool:
    return cfg.INPUT.RANDOM_FLIP != "none"


@dataclass(frozen=True)
class Item:
    """One image, ready for a batch; see `ImageBatch`."""

    pixels: np.ndarray
    label: int
    name: str
    colour: np.ndarray | None = None


class _Records(Sequence):
    """A set's images as the records that `SkippingDataset` maps."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict:
        return {"index": index, "file_name": self._images.name(index)}


class AugmentedImages(SeededDataset):
    """Images that are read and augmented one by one.

    Attributes:
        images: all of the set.
    """

    def __init__(
        self, images: ImageSet, augmentation: ImageNetAugmentation, skipped: SkippedImages
    ) -> None:
        """
        Args:
            images: all of the set.
            augmentation: of each.
            skipped: notes images that cannot be read, whose places are taken by the next ones.
        """
        self.images, self._augmentation = images, augmentation
        super().__init__(SkippingDataset(_Records(images), self._augment, skipped))

    def _augment(self, record: dict) -> Item:
        index = record["index"]
        # NumPy's state was seeded for this image
        rng = np.random.default_rng(np.random.randint(2**63 - 1))
        pixels, colour = self._augmentation(self.images.read(index), rng)
        return Item(pixels, int(self.images.labels[index]), record["file_name"], colour)


class TestImages(Dataset):
    """The centre crop of each image."""

    __test__ = False  # pytest takes it for tests

    def __init__(self, images: ImageSet, protocol: Protocol) -> None:
        self._images, self._protocol = images, protocol

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Item:
        """
        Raises:
            UserError: if the image cannot be read.
        """
        images = self._images
        image = images.read(index)
        try:
            (views,) = self._protocol.cut(image)
        except UserError as error:
            raise UserError(f"{images.name(index)}: {error}") from error
        return Item(views[0], int(images.labels[index]), images.name(index))


def hold(
    images: ImageSet, protocol: Protocol, skipped: SkippedImages
) -> tuple[np.ndarray, np.ndarray]:
    """Read all images into memory, each as the protocol's centre crop.

    Args:
        images: of one size, or to be resized to it.
        protocol: of one centre crop.
        skipped: notes images that cannot be read, which are left out.

    Returns:
        Which of them were read (N,) int64, and their pixels (N, size, size, 3) RGB, uint8.

    Raises:
        UserError: if they would take more than 8 GiB, or too many cannot be read.
    """
    size = protocol.size
    needed = len(images) * size * size * 3
    if needed > _HELD_BYTES:
        raise UserError(
            f"CLASSIFIER.AUGMENTATION crop holds all images in memory: {len(images)} of {size} "
            f"pixels take {needed / 2**30:.0f} GiB; use CLASSIFIER.AUGMENTATION imagenet"
        )
    pixels = np.empty((len(images), size, size, 3), np.uint8)
    read = []
    for index in range(len(images)):
        try:
            (views,) = protocol.cut(images.read(index))
        except UserError as error:
            skipped.add(images.name(index), str(error))
            continue
        pixels[len(read)] = views[0]
        read.append(index)
    if not read:
        raise UserError(f"{images.root}: no image can be read")
    return np.array(read), pixels[: len(read)]


def mean_colour(cfg: CfgNode) -> tuple[int, ...]:
    """`MODEL.PIXEL_MEAN` as an RGB colour of 0..255."""
    mean = cfg.MODEL.PIXEL_MEAN if cfg.INPUT.FORMAT == "RGB" else cfg.MODEL.PIXEL_MEAN[::-1]
    return tuple(min(max(round(value), 0), 255) for value in mean)


class CroppedInMemory(Dataset):
    """Images in memory, augmented as for CIFAR (Appendix A): padded, cropped, flipped.

    The padding is an eighth of the size: 4 of 32 pixels. It has the mean colour: the authors pad
    with zeros after normalisation (fb.resnet.torch, datasets/cifar10.lua). Whole batches are asked
    for at once.

    Attributes:
        images: all of the set.
    """

    def __init__(
        self,
        images: ImageSet,
        kept: np.ndarray,
        pixels: np.ndarray,
        fill: Sequence[int],
        *,
        flip: bool,
    ) -> None:
        """
        Args:
            images: all of the set.
            kept: (N,) indices of those that were read; the others' places are taken by these.
            pixels: (N, size, size, 3) RGB, uint8.
            fill: colour of the padding, RGB of 0..255.
            flip: whether half of the images are mirrored.
        """
        self.images, self._kept, self._pixels = images, kept, pixels
        self._fill, self._flip = fill, flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, places: Sequence[SeededIndex]) -> ImageBatch:
        """The images of these (seed, index) pairs."""
        rows = np.array([index % len(self._kept) for _, index in places])
        padding = self._pixels.shape[1] // 8
        seeds = [seed for seed, _ in places]
        pixels = crop_and_flip(self._pixels[rows], seeds, padding, self._fill, flip=self._flip)
        indices = self._kept[rows]
        labels = torch.from_numpy(self.images.labels[indices])
        names = [self.images.name(index) for index in indices]
        return ImageBatch(torch.from_numpy(pixels), labels, names)


def _collate(items: Sequence[Item] | ImageBatch) -> ImageBatch:
    if isinstance(items, ImageBatch):
        return items
    colours = [item.colour for item in items if item.colour is not None]
    return ImageBatch(
        torch.from_numpy(np.stack([item.pixels for item in items])),
        torch.tensor([item.label for item in items]),
        [item.name for item in items],
        torch.from_numpy(np.stack(colours)) if colours else None,
    )
