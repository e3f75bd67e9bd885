"""The training data of a config: checked records, in a stream that can begin at any iteration."""

from collections.abc import Callable, Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import _train_loader_from_config, trivial_batch_collator
from detectron2.data.samplers import RandomSubsetTrainingSampler
from torch.utils.data import DataLoader

from ..data import NamingDatasetMapper
from ..data.skipping import SKIPPED, SkippedImages, SkippingDataset
from ..data.stream import BatchStream, SeededDataset, orientations
from ..errors import UserError
from .checks import check_targets
from .stopping import leave_stopping_to_the_trainer


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """Build the training loader; its `batch_sampler` is a `BatchStream`.

    Batches are lists of what the mapper gives: `image` is a (3, H, W) uint8 tensor, 0..255 in
    `INPUT.FORMAT`. Up to `DATALOADER.MAX_SKIPPED_IMAGES` images that cannot be used are left out,
    and listed in `OUTPUT_DIR/skipped_images.jsonl`.

    Raises:
        UserError: for data without annotations, or without masks or keypoints that the model
            learns.
    """
    records = training_records(cfg)
    mapper = NamingDatasetMapper(cfg, True)
    limit = cfg.DATALOADER.get("MAX_SKIPPED_IMAGES", 0)
    file = Path(cfg.OUTPUT_DIR) / SKIPPED
    skipped = SkippedImages(file, limit, finder="python tools/check_data.py")
    stream = BatchStream(
        _sampler(cfg, records),
        images_per_batch=cfg.SOLVER.IMS_PER_BATCH,
        accumulate=cfg.SOLVER.get("ACCUM_STEPS", 1),
        groups=orientations(records) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
        seed=max(cfg.SEED, 0),
    )
    dataset = SkippingDataset(DatasetFromList(records, copy=False), mapper, skipped)
    return DataLoader(
        SeededDataset(dataset),
        batch_sampler=stream,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=leave_stopping_to_the_trainer,
    )


def _sampler(cfg: CfgNode, records: list[dict]) -> Callable[[int], Iterator[int]]:
    """The endless order of indices for a seed, by the sampler that `SAMPLER_TRAIN` names."""

    def order(seed: int) -> Iterator[int]:
        if cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
            ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
            sampler = RandomSubsetTrainingSampler(
                len(records), ratio, seed_shuffle=seed, seed_subset=seed
            )
        else:
            # the mapper is not used here
            sampler = _train_loader_from_config(cfg, len, dataset=records)["sampler"]
            sampler._seed = seed
        return sampler._infinite_indices()  # of all processes, before they take turns

    return order


def training_records(cfg: CfgNode) -> list[dict]:
    """The training sets' dataset dicts, as Detectron2 filters them, checked.

    Raises:
        UserError: if no image has an annotation, or annotations cannot be trained on.
    """
    with_keypoints = cfg.MODEL.KEYPOINT_ON
    try:
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
            if with_keypoints
            else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    except AssertionError as error:
        if "No valid data found" not in str(error):
            raise
        names = ", ".join(cfg.DATASETS.TRAIN)
        raise UserError(f"{names}: no image has an annotation to train on") from error
    check_targets(cfg, records)
    return records
