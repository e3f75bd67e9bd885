"""The detectors' trainer with a classifier's data, and its errors as results."""

import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader

from ..engine.stopping import StopSignals
from ..engine.trainer import Trainer
from ..errors import UserError
from ..modeling import ImageBatch
from .image_set import ImageSet
from .imagenet5k import ClassList
from .record import RECORD, ClassifierRecord, require_same_classes
from .topk import Errors
from .training_data import build_test_loader, build_train_loader, classes_of, protocol_of, read_set

logger = logging.getLogger(__name__)


class ClassifierTrainer(Trainer):
    """Trains and evaluates classifiers; all else is `Trainer`'s."""

    def __init__(self, cfg: CfgNode, signals: StopSignals | None = None) -> None:
        """See `Trainer`."""
        super().__init__(cfg, signals)
        own = cfg.CLASSIFIER
        if own.AUGMENTATION == "imagenet" and own.RESIZE > 2 * own.SIZE:
            logger.warning(
                "tests see a small part of an image, %d of %d pixels: set CLASSIFIER.RESIZE to "
                "about 8/7 of CLASSIFIER.SIZE",
                own.SIZE,
                own.RESIZE,
            )
        record = ClassifierRecord.of(protocol_of(cfg), self._loader.dataset.images.classes)
        self.checkpointer.notes[RECORD] = record.as_dict()

    def check_test_data(self, cfg: CfgNode) -> None:
        """Refuse test images that were trained on, or whose labels mean other classes."""
        self._test_images = read_set(cfg, "test") if cfg.DATASETS.TEST else None
        if self._test_images is None:
            return
        trained, tested = self._loader.dataset.images, self._test_images
        if _are_same(trained, tested):
            raise UserError(
                f"{tested.root}: training and test images are the same; name others to test on "
                "(--val-data), or none: DATASETS.TEST '()'"
            )
        if classes_of(cfg) is None:  # else both were read by that list
            require_same_classes(trained.classes, tested.classes, str(tested.root))

    def describe_data(self) -> dict[str, dict]:
        """See `Trainer.describe_data`: the files' names and labels are what tells a set."""
        data = self.cfg.DATASETS
        described = {f"{data.TRAIN[0]} (train)": _fingerprint(self._loader.dataset.images)}
        if self._test_images is not None:
            described[f"{data.TEST[0]} (test)"] = _fingerprint(self._test_images)
        return described

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """See `resnext_det.classification.training_data.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, *, shared: bool = True
    ) -> DataLoader:
        """See `resnext_det.classification.training_data.build_test_loader`."""
        return build_test_loader(cfg)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, metrics: Sequence[Mapping] | None = ()
    ) -> "ErrorsEvaluator":
        """Build what counts top-1 and top-5 errors."""
        return ErrorsEvaluator(classes_of(cfg))


def _are_same(some: ImageSet, others: ImageSet) -> bool:
    return len(some) == len(others) and all(
        some.name(index) == others.name(index) for index in range(len(some))
    )


def _fingerprint(images: ImageSet) -> dict:
    digest = hashlib.sha256(images.labels.tobytes())
    for index in range(len(images)):
        digest.update(os.fsencode(images.name(index).removeprefix(str(images.root))) + b"\0")
    return {
        "images": len(images),
        "classes": len(images.classes),
        "sha256 of names and labels": digest.hexdigest(),
    }


class ErrorsEvaluator(DatasetEvaluator):
    """Counts errors over all processes.

    Its results are {"classification": {"accuracy", "top1_error", "top5_error"}} in percent, the
    last NaN with five classes or fewer. After training on ImageNet-5K that is the 5K-way task of
    Section 5.2, and "classification_1k" the 1K-way one.
    """

    def __init__(self, known: ClassList | None = None) -> None:
        """
        Args:
            known: of ImageNet-5K.
        """
        self._known = known

    def reset(self) -> None:
        """See `DatasetEvaluator`."""
        self._errors = {"classification": Errors()}
        if self._known is not None:
            self._errors["classification_1k"] = Errors(first=self._known.first)

    def process(self, inputs: ImageBatch, outputs: Tensor) -> None:
        """Count a batch.

        Args:
            inputs: with labels.
            outputs: logits (N, num_classes).

        Raises:
            UserError: if a logit is NaN or infinite.
        """
        logits = outputs.float().cpu()
        for errors in self._errors.values():
            errors.add(logits, inputs.labels)

    def evaluate(self) -> dict | None:
        """The results on the main process."""
        everyones = comm.gather(self._errors)
        if not comm.is_main_process():
            return None
        results = {}
        for task in self._errors:
            total = sum((each[task] for each in everyones[1:]), everyones[0][task])
            results[task] = {
                "accuracy": 100 - total.top1,
                "top1_error": total.top1,
                "top5_error": math.nan if total.top5 is None else total.top5,
            }
        return results
