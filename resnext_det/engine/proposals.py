"""A trained RPN's proposals as files, in the format in which Detectron2 loads them."""

import hashlib
import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..weights import StrictCheckpointer, settings_of
from .trainer import Trainer

logger = logging.getLogger(__name__)


class ProposalWriter(DatasetEvaluator):
    """Collects the outputs of a `ProposalNetwork` and writes them as one file.

    Each process leaves its share beside the file; the main process joins them, so that a set of
    several GB passes through no network. All processes must see the same folder. The file holds a
    dict, as `detectron2.data.build.load_proposals_into_dataset` reads it:

    | key                 | value                                                            |
    |---------------------|------------------------------------------------------------------|
    | `ids`               | image ids                                                        |
    | `boxes`             | per image (N, 4) float32: x0, y0, x1, y1, pixels of the original |
    | `objectness_logits` | per image (N,) float32, highest first                            |
    | `bbox_mode`         | 0, `BoxMode.XYXY_ABS`                                            |
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: the file; it appears whole or not at all.
        """
        self.path = path
        self.reset()

    def reset(self) -> None:
        """Forget the images of an earlier pass."""
        self._content = {"ids": [], "boxes": [], "objectness_logits": []}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take the proposals of one batch; Detectron2 has scaled them to the original image."""
        for image, output in zip(inputs, outputs, strict=True):
            proposals = output["proposals"].to("cpu")
            self._content["ids"].append(image["image_id"])
            self._content["boxes"].append(_as_array(proposals.proposal_boxes.tensor))
            self._content["objectness_logits"].append(_as_array(proposals.objectness_logits))

    def evaluate(self) -> dict:
        """Write the file.

        Returns:
            Nothing, as an empty dict: there are no metrics.
        """
        parts = [self._part(rank) for rank in range(comm.get_world_size())]
        _dump(self._content, parts[comm.get_rank()])
        self.reset()
        comm.synchronize()
        if comm.is_main_process():
            whole = {"ids": [], "boxes": [], "objectness_logits": []}
            for part in parts:
                with part.open("rb") as file:
                    for key, values in pickle.load(file).items():
                        whole[key].extend(values)
            assert len(whole["ids"]) == len(set(whole["ids"])), "an image came twice"
            temporary = self.path.with_name(f".{self.path.name}")
            _dump({**whole, "bbox_mode": BoxMode.XYXY_ABS.value}, temporary)
            os.replace(temporary, self.path)
            for part in parts:
                part.unlink()
        comm.synchronize()
        return {}

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.{rank}")


def proposal_stamp(cfg: CfgNode, checkpoint: Path, dataset: str, *, training: bool) -> dict:
    """Say what a proposal file depends on: the RPN's weights and how they are applied.

    Args:
        cfg: the RPN's config.
        checkpoint: the RPN's weights.
        dataset: name of the data set.
        training: take `MODEL.RPN.{PRE,POST}_NMS_TOPK_TRAIN`, not those for testing.
    """
    kind = "TRAIN" if training else "TEST"
    return {
        "dataset": dataset,
        "rpn_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "pre_nms_topk": cfg.MODEL.RPN[f"PRE_NMS_TOPK_{kind}"],
        "post_nms_topk": cfg.MODEL.RPN[f"POST_NMS_TOPK_{kind}"],
        "nms_thresh": cfg.MODEL.RPN.NMS_THRESH,
        "min_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        "image_size": [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST],
    }


def is_whole(path: Path, stamp: dict) -> bool:
    """Whether `path` is there, as it was written, and made as `stamp` says."""
    try:
        written = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return written == {**stamp, "bytes": path.stat().st_size}
    except (OSError, ValueError):
        return False


def write_proposals(cfg: CfgNode, checkpoint: Path, stamp: dict, path: Path) -> None:
    """Run the RPN on a whole data set and write its proposals, in all processes together.

    `path` gets the proposals and, once they are there, a `.json` beside it `stamp` and their size.

    Args:
        cfg: the RPN's config.
        checkpoint: the RPN's weights.
        stamp: by `proposal_stamp`; names the data set and the numbers of proposals.
        path: the file to write, `.pkl`.

    Raises:
        UserError: if the data set or the weights cannot be read.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = stamp["pre_nms_topk"]
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = stamp["post_nms_topk"]
    model = Trainer.build_model(cfg)
    checkpointer = StrictCheckpointer(model, settings=settings_of(cfg))
    checkpointer.whole_model = True
    checkpointer.load(str(checkpoint))
    loader = Trainer.build_test_loader(cfg, stamp["dataset"])
    inference_on_dataset(model, loader, ProposalWriter(path))
    if comm.is_main_process():
        content = json.dumps({**stamp, "bytes": path.stat().st_size}, indent=2)
        temporary = path.with_name(f".{path.stem}.json")
        temporary.write_text(content + "\n", encoding="utf-8")
        os.replace(temporary, path.with_suffix(".json"))
    comm.synchronize()


def _as_array(tensor: object) -> np.ndarray:
    return tensor.numpy().astype(np.float32, copy=False)


def _dump(content: dict, path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=pickle.HIGHEST_PROTOCOL)
