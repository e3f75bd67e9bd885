"""One detector as Detectron2 builds it and as this package does, with equal weights."""

import copy
from functools import cached_property

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import RetinaNet, build_model
from torch import Tensor, nn

from ...errors import UserError
from ...images import read_image
from ...inference.detector import load_detector, read_config
from ...modeling.build import build_detector
from .settings import Settings

# Our names and Detectron2's for the same network
_DETECTRON2_BACKBONES = {
    "build_resnext_backbone": "build_resnet_backbone",
    "build_resnext_fpn_backbone": "build_resnet_fpn_backbone",
    "build_retinanet_resnext_fpn_backbone": "build_retinanet_resnet_fpn_backbone",
}
_DETECTRON2_HEADS = {"ResNeXtRes5ROIHeads": "Res5ROIHeads"}
_DEPTHS = (50, 101, 152)  # that Detectron2's ResNet builds of bottleneck blocks
_LONGEST_SIDE = 1333 / 800  # of the shorter one, as configs resize images


class Networks:
    """A benchmark's networks and images; what is not asked for is not built.

    Attributes:
        cfg: of ours.
        image: (3, H, W) float32, 0..255, in the colour order of the config.
    """

    def __init__(self, settings: Settings) -> None:
        """Read the config and the image.

        Raises:
            UserError: if one cannot be read, or Detectron2 has no such network.
        """
        self.settings = settings
        self.cfg = _read_config(settings)
        if settings.image is None:
            self.image = noise(*settings.landscape)
        else:
            array = read_image(settings.image)
            longest = round(settings.size * _LONGEST_SIDE)
            resize = ResizeShortestEdge([settings.size] * 2, longest).get_transform(array)
            array = resize.apply_image(array)
            if self.cfg.INPUT.FORMAT == "RGB":
                array = array[:, :, ::-1]
            self.image = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).float()

    @cached_property
    def ours(self) -> nn.Module:
        """The detector as this package trains and evaluates it, in evaluation mode.

        Raises:
            UserError: if the weights are not those of the detector.
        """
        if self.settings.weights is not None:
            return load_detector(self.cfg, None)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = build_detector(self.cfg).eval()
            randomise(model)
        return model

    @cached_property
    def detectron2(self) -> nn.Module:
        """The detector with Detectron2's own ResNet, and the weights of `ours`."""
        cfg = self.cfg.clone()
        cfg.MODEL.BACKBONE.NAME = _DETECTRON2_BACKBONES[cfg.MODEL.BACKBONE.NAME]
        cfg.MODEL.ROI_HEADS.NAME = _DETECTRON2_HEADS.get(
            cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NAME
        )
        model = build_model(cfg).eval()
        model.load_state_dict(self.ours.state_dict())
        return model

    @cached_property
    def calibration(self) -> list[list[dict]]:
        """Images of noise, as Detectron2's models take them."""
        size = self.image.shape[1:]
        count = self.settings.calibration_images
        return [[{"image": noise(*size, seed)}] for seed in range(1, count + 1)]

    def normalised(self, images: Tensor) -> Tensor:
        """What enters the backbone for images (N, 3, H, W), 0..255."""
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1)
            for values in (self.cfg.MODEL.PIXEL_MEAN, self.cfg.MODEL.PIXEL_STD)
        )
        return (images - mean) / std

    def ours_in_form(self, form: str) -> nn.Module:
        """The detector in another form of Fig. 3, with equal weights."""
        from ... import convert_form

        cfg = self.cfg.clone()
        cfg.MODEL.RESNEXT.FORM = form
        model = build_detector(cfg).eval()
        model.load_state_dict(convert_form(self.ours.state_dict(), form))
        return model


def bottom_up_name(model: nn.Module) -> str:
    """The submodule of a detector from the stem to the last stage before FPN."""
    return "backbone.bottom_up" if hasattr(model.backbone, "bottom_up") else "backbone"


def bottom_up(model: nn.Module) -> nn.Module:
    """See `bottom_up_name`."""
    return model.get_submodule(bottom_up_name(model))


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """An image (3, H, W) float32 of whole numbers, 0..255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator).float()


def randomise(model: nn.Module) -> None:
    """Give a new detector the statistics of one in use, and scores that make detections."""
    randomise_statistics(model)
    for name, weight in model.named_parameters():
        if name.endswith("cls_score.weight"):
            nn.init.normal_(weight, std=0.3)
        elif name.endswith("bbox_pred.weight"):
            nn.init.normal_(weight, std=0.05)
    if isinstance(model, RetinaNet):
        _randomise_head(model.head)


def _randomise_head(head: nn.Module) -> None:
    """RetinaNet's begins with scores of 0.01 for all, of which none is a detection."""
    for tower in (head.cls_subnet, head.bbox_subnet):
        for layer in tower.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    nn.init.normal_(head.cls_score.weight, std=0.02)
    nn.init.zeros_(head.cls_score.bias)
    nn.init.normal_(head.bbox_pred.weight, std=0.005)


def randomise_statistics(model: nn.Module) -> None:
    """Give frozen BN the statistics of a network in use; a block adds a little to its input."""
    for name, norm in model.named_modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.1)
            norm.weight.uniform_(0.5, 1.5)
            if name.endswith("conv3.norm"):
                norm.weight.mul_(0.3)


def _read_config(settings: Settings) -> CfgNode:
    for key, instead in (("MODEL.WEIGHTS", "give --weights FILE"), ("MODEL.DEVICE", "it is cpu")):
        if key in settings.overrides[::2]:
            raise UserError(f"{key} is not the benchmark's: {instead}")
    cfg = copy.deepcopy(read_config(settings.config, settings.overrides))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = settings.weights or ""
    resnext = cfg.MODEL.RESNEXT
    if cfg.MODEL.BACKBONE.NAME not in _DETECTRON2_BACKBONES:
        raise UserError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}: the benchmark compares "
            f"{', '.join(_DETECTRON2_BACKBONES)} with Detectron2's"
        )
    if cfg.MODEL.RESNETS.DEPTH not in _DEPTHS:
        raise UserError(
            f"MODEL.RESNETS.DEPTH {cfg.MODEL.RESNETS.DEPTH}: Detectron2's own ResNet, which ours "
            f"is compared with, has depths {', '.join(map(str, _DEPTHS))}"
        )
    if resnext.FORM != "c" or not resnext.RESIDUAL:
        raise UserError("MODEL.RESNEXT: Detectron2 has form c with shortcuts alone; see --forms")
    return cfg
