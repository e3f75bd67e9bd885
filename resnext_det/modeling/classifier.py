"""Classifiers: the paper's ImageNet networks and its CIFAR networks, from images to logits.

The CIFAR networks (Section 5.3, Appendix A) have three stages of the same blocks.
"""

from collections.abc import Mapping, Sequence

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling import META_ARCH_REGISTRY, ResNet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .image_batch import ImageBatch
from .resnext import (
    ResNeXt,
    block_options_from_config,
    checkpoint_stages,
    make_resnext_stage,
    variant_from_config,
)

NETWORKS = ("imagenet", "cifar")
ARCHITECTURE = "ImageClassifier"


def cifar_blocks_per_stage(depth: int) -> int:
    """n of a CIFAR network with 9 n + 2 layers.

    Raises:
        ValueError: for another depth.
    """
    blocks, rest = divmod(depth - 2, 9)
    if blocks < 1 or rest:
        raise ValueError(f"depth {depth} is not 9 n + 2, e.g. 29 or 38")
    return blocks


class CifarStem(CNNBlockBase):
    """One 3x3 layer of 64 filters at stride 1, with norm and ReLU."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, 1)
        self.conv1 = Conv2d(
            in_channels, out_channels, 3, padding=1, bias=False, norm=get_norm(norm, out_channels)
        )
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        return F.relu_(self.conv1(x))


class CifarResNeXt(ResNet):
    """ResNeXt-29 and its deeper kin for 32x32 images.

    Stages res2, res3, res4 have maps of 32, 16 and 8 pixels, widths d, 2d and 4d, and in the paper
    outputs of 256, 512 and 1024 channels.

    Input: (N, 3, 32, 32). Output: {"linear": logits (N, num_classes)}.
    """

    def __init__(
        self,
        depth: int = 29,
        cardinality: int = 8,
        width: int = 64,
        *,
        stem_out_channels: int = 64,
        res2_out_channels: int = 256,
        num_classes: int = 10,
        norm: str = "BN",
        form: str = "c",
        residual: bool = True,
        checkpoint: bool = False,
    ) -> None:
        """
        Args:
            depth: 9 n + 2 layers, for n blocks in each of the three stages.
            cardinality: C, the number of paths.
            width: d, channels of a path in the first stage.
            stem_out_channels: channels of the first layer.
            res2_out_channels: output channels of res2's blocks; they double per stage.
            num_classes: number of classes.
            norm: a name that `detectron2.layers.get_norm` knows.
            form: "a", "b" or "c" of Fig. 3.
            residual: False leaves out every shortcut.
            checkpoint: recompute activations in the backward pass; see `CheckpointedStage`.

        Raises:
            ValueError: if `depth` is not 9 n + 2.
        """
        num_blocks = cifar_blocks_per_stage(depth)
        stages, channels = [], stem_out_channels
        for index in range(3):
            stages.append(
                make_resnext_stage(
                    num_blocks,
                    in_channels=channels,
                    out_channels=res2_out_channels * 2**index,
                    cardinality=cardinality,
                    width=width * 2**index,
                    first_stride=1 if index == 0 else 2,
                    norm=norm,
                    form=form,
                    residual=residual,
                )
            )
            channels = res2_out_channels * 2**index
        stem = CifarStem(out_channels=stem_out_channels, norm=norm)
        super().__init__(stem, stages, num_classes=num_classes)
        if checkpoint:
            checkpoint_stages(self)


class Classifier(nn.Module):
    """RGB images of 0..255 in, logits out: normalisation and channel order are inside."""

    def __init__(
        self,
        network: nn.Module,
        *,
        channel_order: str,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        """
        Args:
            network: a `ResNeXt` or `CifarResNeXt` with a classifier: its output has "linear".
            channel_order: that the network takes, "RGB" or "BGR".
            pixel_mean: three numbers in that order, of 0..255.
            pixel_std: likewise.
        """
        super().__init__()
        self.network = network
        self._is_bgr = channel_order == "BGR"
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            tensor = torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, images: Tensor, colour: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            images: (N, H, W, 3) RGB, uint8, 0..255.
            colour: see `ImageBatch`.

        Returns:
            Logits (N, num_classes).
        """
        with torch.autocast(images.device.type, enabled=False):  # colours have 8 bits already
            if colour is not None:
                images = _recolour(images, colour)
            if self._is_bgr:
                images = images.flip(3)
            x = images.permute(0, 3, 1, 2).to(self.pixel_mean)  # a view in channels_last
            x = (x - self.pixel_mean) / self.pixel_std
        return self.network(x)["linear"]


def _recolour(images: Tensor, colour: Tensor) -> Tensor:
    """Apply (N, 3, 4) affine maps to the colours of (N, H, W, 3) images, as floats."""
    count, height, width, _ = images.shape
    pixels = images.view(count, height * width, 3).to(colour.dtype)
    offset, matrix = colour[:, None, :, 3], colour[:, :, :3]
    return torch.baddbmm(offset, pixels, matrix.mT).view(count, height, width, 3)


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """A classifier as Detectron2's trainer takes models: losses in training, else logits.

    Checkpoints hold its `network` alone, see `saved_module`.
    """

    @configurable
    def __init__(self, classifier: Classifier) -> None:
        """
        Args:
            classifier: whose logits the losses are of.
        """
        super().__init__()
        self.classifier = classifier

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments from a config, see `resnext_det.config.CLASSIFIER_KEYS`."""
        classifier = Classifier(
            build_classifier_network(cfg),
            channel_order=cfg.INPUT.FORMAT,
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
        )
        return {"classifier": classifier}

    @property
    def network(self) -> nn.Module:
        """The `ResNeXt` or `CifarResNeXt`."""
        return self.classifier.network

    @property
    def device(self) -> torch.device:
        """Where the model is; batches are brought there."""
        return self.classifier.pixel_mean.device

    def forward(self, batch: ImageBatch | Sequence[Mapping]) -> dict[str, Tensor] | Tensor:
        """Classify a batch.

        Args:
            batch: images of one size.

        Returns:
            In training {"loss_cls": the mean cross entropy}, else logits (N, num_classes).
        """
        batch = batch if isinstance(batch, ImageBatch) else ImageBatch.of(batch)
        images, labels = (
            t.to(self.device, non_blocking=True) for t in (batch.images, batch.labels)
        )
        colour = batch.colour
        if colour is not None:
            colour = colour.to(self.device, non_blocking=True)
        logits = self.classifier(images, colour)
        return {"loss_cls": F.cross_entropy(logits, labels)} if self.training else logits


def is_classifier(cfg: CfgNode) -> bool:
    """Whether a config is of an `ImageClassifier`, and not of a detector."""
    return cfg.MODEL.META_ARCHITECTURE == ARCHITECTURE


def is_cifar(cfg: CfgNode) -> bool:
    """Whether a config is of a CIFAR network, which has three stages."""
    return is_classifier(cfg) and cfg.CLASSIFIER.NETWORK == "cifar"


def build_classifier_network(cfg: CfgNode) -> ResNeXt | CifarResNeXt:
    """Build the network that `MODEL.RESNETS` and `CLASSIFIER` name, with He initialisation.

    Norms start at 1 and the classifier's bias at 0, as in the authors' code (fb.resnet.torch,
    models/resnet.lua); detectors trained from nothing start at zero the last norm of each block.

    Raises:
        ValueError: if they name no possible network.
    """
    resnets = cfg.MODEL.RESNETS
    options = {
        "stem_out_channels": resnets.STEM_OUT_CHANNELS,
        "res2_out_channels": resnets.RES2_OUT_CHANNELS,
        "num_classes": cfg.CLASSIFIER.NUM_CLASSES,
        "checkpoint": cfg.MODEL.RESNEXT.CHECKPOINT,
    }
    blocks = block_options_from_config(cfg)
    if is_cifar(cfg):
        options |= {key: blocks[key] for key in ("norm", "form", "residual")}
        sizes = (resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP)
        network = CifarResNeXt(*sizes, **options)
    else:
        variant = variant_from_config(cfg)
        network = ResNeXt(
            variant.depth,
            variant.cardinality,
            variant.width,
            **options,
            **{**blocks, "zero_init_residual": False},
        )
    nn.init.zeros_(network.linear.bias)
    return network.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


def saved_module(model: nn.Module) -> nn.Module:
    """The part of a model whose tensors a checkpoint holds.

    Of an `ImageClassifier` its network, so that the names are those of a bare backbone, which
    detectors load; of other models all.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    return model.network if isinstance(model, ImageClassifier) else model
