"""A trained detector as a function of images."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from PIL import Image

from ..deploy.options import parse_how
from ..errors import UserError
from ..images import MAX_PIXELS, ImageInput, to_array
from ..modeling.build import choose_device
from .detector import load_detector, metadata_of, read_config
from .outputs import to_dict

logger = logging.getLogger(__name__)

_WAITING_BATCHES = 4  # images that wait for others of their size, in batches


class Predictor:
    """Detects objects in images, as `detectron2.engine.DefaultPredictor` does, one or many at once.

    Several images go through the network together only if they have the same size after resizing:
    padding to a common size would change features near the borders, and so the results. A batch
    then gives what single images give, up to rounding.

    Attributes:
        cfg: the config, frozen.
        model: the detector, in evaluation mode.
        metadata: of the config's data set.
        class_names: in the order of `pred_classes`.
        keypoint_names: in the order of a detection's keypoints; empty for models without.
        batch_size: images that go through the network together at most.
        max_pixels: width * height of the largest image that is taken.
    """

    def __init__(
        self,
        config: str | Path | CfgNode,
        weights: str | Path | None = None,
        *,
        device: str | None = None,
        overrides: Sequence[str] = (),
        batch_size: int = 1,
        max_pixels: int = MAX_PIXELS,
        optimize: str | None = None,
    ) -> None:
        """Build the detector and load its weights.

        Args:
            config: a YAML file, such as a run's config.yaml, which makes the run's own data sets
                known; the name of a shipped config; or a config, which is not changed.
            weights: a trained detector's file; None for the config's MODEL.WEIGHTS. A run's
                config.yaml names those that the training started from.
            device: "cpu", "cuda", "cuda:1"; None for the config's MODEL.DEVICE, or the CPU where
                no GPU is visible.
            overrides: KEY VALUE words, for a config that is a file or a name.
            batch_size: images at once, at least 1.
            max_pixels: width * height of the largest image that is taken.
            optimize: compile the detector for the CPU: "f32", "bf16", or the folder of an int8
                model; see `resnext_det.deploy`.

        Raises:
            UserError: for a config, device or value that cannot be used, weights that are not
                those of this whole detector, a data set whose classes are unknown, or an
                optimisation that this CPU or model does not admit.
        """
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: at least 1 image is needed")
        if optimize is not None:
            parse_how(optimize, int8=False)
        cfg = read_config(config, overrides)
        if weights is not None:
            cfg.MODEL.WEIGHTS = str(weights)
        if choose_device(cfg, device, asked="MODEL.DEVICE" in overrides[::2]):
            logger.warning("no GPU is visible: running on the CPU")
        self.metadata = metadata_of(cfg)
        self.class_names: list[str] = list(self.metadata.thing_classes)
        self.keypoint_names: list[str] = []
        if cfg.MODEL.KEYPOINT_ON:
            self.keypoint_names = list(self.metadata.get("keypoint_names") or ())
        self.batch_size, self.max_pixels = batch_size, max_pixels
        cfg.freeze()
        self.cfg = cfg
        self.model = load_detector(
            cfg, None if isinstance(config, CfgNode) else Path(config).parent
        )
        if optimize is not None:
            from ..deploy.quantized import optimize_as  # which nobody else needs

            self.model = optimize_as(self.model, optimize)

    def __call__(
        self, images: ImageInput | Sequence[ImageInput], *, score: float = 0.0
    ) -> Instances | list[Instances]:
        """Detect objects.

        Args:
            images: one image or a list or tuple of images. Each is an array, (H, W, 3) BGR uint8,
                0..255; a PIL image; or a path. See `resnext_det.images.to_array`.
            score: detections with a lower score, 0..1, are left out.

        Returns:
            For one image its detections, for a list a list in the same order: `pred_boxes`,
            `scores`, `pred_classes`, and `pred_masks` or `pred_keypoints` of models that have them,
            on the CPU, in pixels of the original image.

        Raises:
            UserError: for an image or a score that cannot be used; nothing is returned then.
        """
        try:
            inside = bool(0 <= score <= 1)
        except (TypeError, ValueError):  # no number, or several
            inside = False
        if not inside:
            raise UserError(f"score {score!r}: a threshold is a number from 0 to 1")
        if not isinstance(images, (list, tuple)):
            return self._detect([images], score)[0]
        return self._detect(images, score)

    def predict_dicts(
        self, images: ImageInput | Sequence[ImageInput], *, score: float = 0.0
    ) -> dict | list[dict]:
        """Detect objects, as `__call__` does; the answers are dicts of arrays, see `to_dict`."""
        found = self(images, score=score)
        if isinstance(found, Instances):
            return to_dict(found, self.class_names)
        return [to_dict(instances, self.class_names) for instances in found]

    def _detect(self, images: Sequence[ImageInput], score: float) -> list[Instances]:
        results: list[Instances | None] = [None] * len(images)
        waiting: dict[torch.Size, list[tuple[int, dict]]] = {}  # by size after resizing

        def run(size: torch.Size) -> None:
            indices, batch = zip(*waiting.pop(size), strict=True)
            for index, found in zip(indices, self._infer(batch, score), strict=True):
                results[index] = found

        for index, image in enumerate(images):
            item = self._prepare(to_array(image, "BGR", self.max_pixels))
            size = item["image"].shape
            waiting.setdefault(size, []).append((index, item))
            if len(waiting[size]) == self.batch_size:
                run(size)
            elif sum(map(len, waiting.values())) >= _WAITING_BATCHES * self.batch_size:
                run(next(iter(waiting)))  # the one that waits longest: memory is bounded
        for size in list(waiting):
            run(size)
        return results

    def _prepare(self, image: np.ndarray) -> dict:
        """The model's input for a BGR image: resized, in the config's colour order."""
        cfg = self.cfg.INPUT
        if cfg.FORMAT == "RGB":
            image = image[:, :, ::-1]
        height, width = image.shape[:2]
        resized = image
        if cfg.MIN_SIZE_TEST:  # 0 stands for no resizing
            size = ResizeShortestEdge.get_output_shape(
                height, width, cfg.MIN_SIZE_TEST, cfg.MAX_SIZE_TEST
            )
            if not all(size):
                raise UserError(f"an image of {width} x {height} pixels is too narrow to resize")
            transform = ResizeTransform(height, width, *size, Image.Resampling.BILINEAR)
            resized = transform.apply_image(image)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}

    @torch.no_grad()
    def _infer(self, batch: Sequence[dict], score: float) -> list[Instances]:
        """Run the network on images of one size."""
        if not isinstance(self.model, GeneralizedRCNN):
            found = [output["instances"].to("cpu") for output in self.model(batch)]
            return [instances[instances.scores >= score] for instances in found]
        # masks of the original image's size are made only of what is kept: a hundred of them would
        # need a gigabyte for a photograph
        found = self.model.inference(batch, do_postprocess=False)
        return [
            detector_postprocess(
                instances[instances.scores >= score], item["height"], item["width"]
            ).to("cpu")
            for instances, item in zip(found, batch, strict=True)
        ]
