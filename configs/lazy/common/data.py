"""Data loaders and evaluators."""

from collections.abc import Sequence

from detectron2 import model_zoo
from omegaconf import DictConfig

from resnext_det.data import NamingDatasetMapper
from resnext_det.evaluation import CocoEvaluator


def coco_dataloader(
    train: str = "coco_trainval35k",
    test: str = "coco_minival",
    *,
    tasks: Sequence[str] = ("bbox",),
    train_edges: Sequence[int] = (640, 672, 704, 736, 768, 800),
    test_edge: int = 800,
    max_edge: int = 1333,
) -> DictConfig:
    """Detectron2's COCO loaders on our data sets; images are RGB, 0 to 255.

    Args:
        train: a registered data set of COCO's kind.
        test: another.
        tasks: what to train and evaluate: "bbox", or both "bbox" and "segm".
        train_edges: lengths of the shorter edge in pixels, one drawn for each image.
        test_edge: length of the shorter edge in tests, in pixels.
        max_edge: limit of the longer edge, in pixels.

    Returns:
        `train`, `test` and `evaluator`; the evaluator writes below the config's `train.output_dir`.
    """
    dataloader = model_zoo.get_config("common/data/coco.py").dataloader
    dataloader.train.dataset.names = train
    dataloader.test.dataset.names = test
    for loader in (dataloader.train, dataloader.test):
        loader.mapper._target_ = NamingDatasetMapper
        loader.mapper.augmentations[0].max_size = max_edge
    dataloader.train.mapper.augmentations[0].short_edge_length = list(train_edges)
    dataloader.test.mapper.augmentations[0].short_edge_length = test_edge
    dataloader.train.mapper.image_format = "RGB"
    dataloader.train.mapper.use_instance_mask = "segm" in tasks
    dataloader.evaluator.update(
        _target_=CocoEvaluator,
        tasks=list(tasks),
        output_dir="${train.output_dir}/inference",
        evaluator="hotcoco",
        score=0.5,
        limit=0,
    )
    return dataloader
