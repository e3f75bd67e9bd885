"""The batch on which a training diverged: kept as plain data, and run once more."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..errors import UserError, one_line
from ..modeling import saved_module
from ..randomness import ITERATION, seed_everything
from ..weights.files import read_file
from .step import is_of_predicted_boxes


def pack_batch(batch: Sequence[Mapping]) -> list[dict]:
    """Turn a model's training inputs into tensors, numbers and text, which load without code."""
    packed = []
    for item in batch:
        plain = {k: v for k, v in item.items() if isinstance(v, (str, int, float, torch.Tensor))}
        for kind in ("instances", "proposals"):
            if (instances := item.get(kind)) is not None:
                plain[kind] = _pack_instances(instances)
        packed.append(plain)
    return packed


def _pack_instances(instances: Instances) -> dict:
    plain: dict = {"image_size": list(instances.image_size)}
    for name, value in instances.get_fields().items():
        if isinstance(value, PolygonMasks):
            value = [[torch.from_numpy(p) for p in each] for each in value.polygons]
        plain[name] = getattr(value, "tensor", value)
    return plain


def unpack_batch(packed: Sequence[Mapping]) -> list[dict]:
    """Undo `pack_batch`."""
    batch = []
    for item in packed:
        item = dict(item)
        for kind in ("instances", "proposals"):
            if kind in item:
                fields = dict(item[kind])
                item[kind] = Instances(tuple(fields.pop("image_size")))
                for name, value in fields.items():
                    item[kind].set(name, _structured(name, value))
        batch.append(item)
    return batch


def _structured(name: str, value: Tensor | list) -> object:
    if name == "gt_masks":
        if isinstance(value, Tensor):
            return BitMasks(value)
        return PolygonMasks([[polygon.numpy() for polygon in each] for each in value])
    kinds = {"gt_boxes": Boxes, "proposal_boxes": Boxes, "gt_keypoints": Keypoints}
    return kinds.get(name, lambda plain: plain)(value)


def replay(file: Path, model: nn.Module) -> dict[str, float]:
    """Run a saved batch through the weights that it failed with, with the same random numbers.

    Args:
        file: `nan_batch.pth` of a run.
        model: built from the run's config, in training mode.

    Returns:
        The losses by name.

    Raises:
        UserError: if the file is not readable, or of another model.
    """
    content = read_file(file).content
    try:
        saved_module(model).load_state_dict(content["model"])
        batch = unpack_batch(content["batch"])
        purpose = (content["iteration"], content["part"], content["rank"])
        seed_everything(content["seed"], ITERATION, *purpose)
        precision = getattr(torch, content["precision"] or "float32")
    except (LookupError, TypeError, RuntimeError) as error:
        reason = one_line(error)
        raise UserError(f"{file} holds no batch of this config's model: {reason}") from error
    try:
        device = next(model.parameters()).device.type
        mixed = torch.autocast(device, dtype=precision, enabled=bool(content["precision"]))
        with torch.no_grad(), EventStorage(), mixed:
            losses = model(batch)
    except (FloatingPointError, AssertionError) as error:
        if not is_of_predicted_boxes(error):
            raise
        raise UserError(f"again: {one_line(error)}") from error
    return {name: value.item() for name, value in losses.items()}
