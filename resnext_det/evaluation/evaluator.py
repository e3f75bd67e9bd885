"""COCO evaluation of a model: a Detectron2 evaluator that keeps little and measures fast."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils import comm

from ..errors import UserError
from .buffer import DetectionBuffer
from .detections import Detections, from_instances
from .diagnosis import INFORMATION, diagnose
from .measures import EVALUATORS, implementation
from .summary import (
    Diagnose,
    evaluate_tasks,
    format_classes,
    results_of,
    write_evaluation,
)
from .truth import Truth, annotation_file, read_truth

logger = logging.getLogger(__name__)


class CocoEvaluator(DatasetEvaluator):
    """Measures boxes, masks and keypoints by COCO's figures, and an RPN's proposals by recall.

    Writes `coco_instances_results.json`, in the data set's own category ids, and
    `evaluation.json`, of which reports are made. Logs what may be wrong with the model.

    Attributes:
        diagnose: finds what may be wrong.

    Raises:
        UserError: if the evaluator has no such name, or the data set's annotations are nowhere.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] = ("bbox",),
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        kpt_oks_sigmas: Sequence[float] = (),
        evaluator: str = "hotcoco",
        score: float = 0.5,
        limit: int = 0,
        tta: bool = False,
        diagnose: Diagnose = diagnose,
    ) -> None:
        """
        Args:
            dataset_name: a registered data set.
            tasks: of "bbox", "segm" and "keypoints".
            distributed: whether the images are shared among the processes.
            output_dir: where the files go; None writes none.
            kpt_oks_sigmas: of each keypoint, see COCO's OKS; none for those of COCO's 17.
            evaluator: "hotcoco" or "pycocotools".
            score: at which precision and recall of each class are measured, 0 to 1.
            limit: if not 0, figures are over the ground truth of the images seen alone, as many as
                the loader was limited to.
            tta: whether the model is one of test-time augmentation, to note it.
            diagnose: finds what may be wrong, see `resnext_det.evaluation.diagnosis`.
        """
        if evaluator not in EVALUATORS:
            raise UserError(f"evaluator {evaluator!r} is not one of {', '.join(EVALUATORS)}")
        self._name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        self._tasks = tuple(tasks)
        self._distributed = distributed
        self._folder = Path(output_dir) if output_dir else None
        self._sigmas = tuple(map(float, kpt_oks_sigmas))
        self._evaluator, self._score = evaluator, score
        self._limit, self._tta = limit, tta
        self.diagnose = diagnose
        self._file = annotation_file(dataset_name) or self._write_annotations()
        self.reset()

    def _write_annotations(self) -> Path:
        if self._folder is None:
            raise UserError(
                f"dataset {self._name} has no annotation file (json_file), and there is no "
                "output_dir to write one to"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{self._name}_coco_format.json"
        if comm.is_main_process():
            convert_to_coco_json(self._name, str(file), allow_cached=False)
        comm.synchronize()
        return file

    def reset(self) -> None:
        """See `DatasetEvaluator`."""
        self._images: list[int | str] = []  # ids, in the order that detections count them
        self._detections = DetectionBuffer()
        self._proposals: list[dict] = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Note the detections, or proposals, of some images.

        Args:
            inputs: with `image_id`.
            outputs: of the model, with `instances` or `proposals`.
        """
        for item, output in zip(inputs, outputs, strict=True):
            image, number = item["image_id"], len(self._images)
            self._images.append(image)
            if "proposals" in output:
                proposals = output["proposals"].to("cpu")
                self._proposals.append({"image_id": image, "proposals": proposals})
            if "instances" in output:
                self._detections.add(from_instances(output["instances"].to("cpu"), number))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Measure what was noted.

        Returns:
            On the main process {task: {metric: percent}}: COCO's figures, NaN for a size range
            without ground truth, and "AP-<class>" of each class; elsewhere an empty dict.

        Raises:
            UserError: if the ground truth is not readable or lacks what a task needs, a detection
                is not finite or has an unknown class, or a file cannot be written.
        """
        images, found, proposals = self._images, self._detections, self._proposals
        if self._distributed:
            parts = comm.gather((images, found, proposals), dst=0)
            if not comm.is_main_process():
                return {}
            images, found, proposals = parts[0]
            for part in parts[1:]:
                found.extend(part[1], len(images))
                images += part[0]
                proposals += part[2]
        if not images:
            logger.warning("%s has no images: nothing was evaluated", self._name)
            return {}
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
        if proposals:
            return self._evaluate_proposals(proposals)
        return self._evaluate_detections(images, found.detections())

    def _evaluate_proposals(self, proposals: list[dict]) -> dict[str, dict[str, float]]:
        theirs = COCOEvaluator(
            self._name,
            self._tasks,
            distributed=False,
            output_dir=str(self._folder) if self._folder else None,
            use_fast_impl=False,
        )
        theirs._predictions = proposals
        return theirs.evaluate()

    def _evaluate_detections(
        self, images: Sequence[int | str], detections: Detections
    ) -> dict[str, dict[str, float]]:
        truth = read_truth(self._file, images=images if self._limit else None)
        detections = self._in_dataset(truth, images, detections)
        if self._folder:
            file = self._folder / "coco_instances_results.json"
            detections.write(file, truth.image_ids)
        if not truth.annotated:
            logger.warning("%s has no annotations: nothing was evaluated", self._name)
            return {}
        if not len(detections):
            logger.warning("%s: the model detected nothing, so AP is 0", self._name)
        if self._limit:
            logger.info("%s: the figures are over %d images alone", self._name, len(images))
        tasks = evaluate_tasks(
            truth,
            detections,
            self._tasks,
            evaluator=self._evaluator,
            score=self._score,
            sigmas=self._sigmas,
            diagnose=self.diagnose,
        )
        self._log(tasks)
        if self._folder:
            write_evaluation(
                self._folder / "evaluation.json",
                tasks,
                dataset=self._name,
                images=len(truth.image_ids),
                implementation=implementation(self._evaluator),
                score=self._score,
                limit=self._limit or None,
                tta=self._tta,
            )
        return results_of(tasks)

    def _in_dataset(
        self, truth: Truth, images: Sequence[int | str], detections: Detections
    ) -> Detections:
        """Give them the ground truth's numbers of images, and the data set's own category ids."""
        places = truth.places
        strange = next((image for image in images if image not in places), None)
        if strange is not None:
            raise UserError(f"{self._file} has no image {strange}, which {self._name} has")
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            ids = truth.category_ids  # of a data set that was converted, 0, 1, ...
        else:
            ids = np.array(sorted(contiguous, key=contiguous.get), dtype=np.int64)
        if len(detections) and detections.categories.max() >= len(ids):
            raise UserError(
                f"the model detects class {detections.categories.max()}, and {self._name} has "
                f"{len(ids)} classes, numbered from 0: set the number of classes to {len(ids)}"
            )
        numbers = np.array([places[image] for image in images], dtype=np.int64)
        return detections.renumbered(images=numbers, categories=ids)

    def _log(self, tasks: Mapping[str, Mapping]) -> None:
        for task, content in tasks.items():
            logger.debug("%s %s:\n%s", self._name, task, format_classes(content["classes"]))
            for finding in content["findings"]:
                level = logging.INFO if finding["code"] in INFORMATION else logging.WARNING
                line = f"{finding['message']}; {finding['remedy']}"
                logger.log(level, "%s %s: %s", self._name, task, line)
