"""Building a whole detector from a config, as training, evaluation and inference all run it."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..errors import UserError
from .fast import accelerate

logger = logging.getLogger(__name__)


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build the model on `MODEL.DEVICE`, in the memory format that `MODEL.MEMORY_FORMAT` names.

    "auto" is channels_last on a CPU, in which grouped convolutions are faster. Detectron2's
    keypoint loss takes only contiguous maps, so there keypoint models stay as they are. On a CPU
    `MODEL.FAST_LAYERS` lets `accelerate` change the model.

    Args:
        cfg: with the keys of `add_resnext_config`.

    Returns:
        The model, with random weights, in training mode.

    Raises:
        UserError: if the config describes no network that can be built.
    """
    try:
        model = build_model(cfg)
    except ValueError as error:
        raise UserError(f"the config's network cannot be built: {error}") from error
    logger.debug("model:\n%s", model)
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    if cfg.MODEL.MEMORY_FORMAT == "channels_last" or (
        cfg.MODEL.MEMORY_FORMAT == "auto" and on_cpu and not cfg.MODEL.KEYPOINT_ON
    ):
        model = model.to(memory_format=torch.channels_last)
    return accelerate(model) if on_cpu and cfg.MODEL.FAST_LAYERS else model


def choose_device(cfg: CfgNode, device: str | None = None, *, asked: bool) -> bool:
    """Put the device into the config; the CPU takes the place of a GPU that nobody asked for.

    Args:
        cfg: changed in place.
        device: a caller's; None for MODEL.DEVICE.
        asked: whether MODEL.DEVICE is a caller's word too, and no default.

    Returns:
        Whether the CPU took the place of a GPU.

    Raises:
        UserError: for a device that torch does not know, or a GPU that is not there.
    """
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    try:
        kind = torch.device(cfg.MODEL.DEVICE).type
    except RuntimeError as error:
        raise UserError(f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is not a device") from error
    if kind != "cuda" or torch.cuda.is_available():
        return False
    if device or asked:
        raise UserError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: no GPU is visible to torch")
    cfg.MODEL.DEVICE = "cpu"
    return True
