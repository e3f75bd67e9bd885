"""What weights expect of the network and of the images, kept in the file beside the tensors."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields

from detectron2.config import CfgNode

from ..errors import UserError
from ..modeling import variant_from_config
from ..modeling.classifier import is_cifar

# Version of the record, and of the conversion that writes it: cached conversions carry it.
VERSION = 1

# Detectron2's batch norms, frozen or not, all use it, and no config key changes it.
BN_EPS = 1e-5


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image of 0..255 before the network: (image - pixel_mean) / pixel_std.

    Attributes:
        channel_order: "RGB" or "BGR".
        pixel_mean: three numbers in that order.
        pixel_std: three numbers in that order.
    """

    channel_order: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]

    def reordered(self, channel_order: str) -> "Preprocessing":
        """The same for images of `channel_order`."""
        if channel_order == self.channel_order:
            return self
        return Preprocessing(channel_order, self.pixel_mean[::-1], self.pixel_std[::-1])


# Mean and std of ImageNet's RGB channels (fb.resnet.torch, datasets/imagenet.lua), times 255
IMAGENET = Preprocessing("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# Detectron's config.py: one mean for all of its networks, std folded into the first layer
DETECTRON = Preprocessing("BGR", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0))
# Detectron2's R-50.pkl and R-101.pkl
DETECTRON2_MSRA = Preprocessing("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
# fb.resnet.torch, datasets/cifar10.lua and cifar100.lua
CIFAR10 = Preprocessing("RGB", (125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
CIFAR100 = Preprocessing("RGB", (129.3, 124.1, 112.4), (68.2, 65.4, 70.4))


@dataclass(frozen=True)
class Settings:
    """The part of a recipe that a config has to agree with.

    Attributes:
        variant: e.g. "X-50-32x4d".
        channel_order: "RGB" or "BGR", of the images that the network takes.
        pixel_mean: of the channels in that order, for images of 0..255.
        pixel_std: likewise.
        stride_in_1x1: whether a stage's stride is in its first 1x1 layer, not in the 3x3 layer.
        bn_eps: epsilon of the batch norms.
    """

    variant: str
    channel_order: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    stride_in_1x1: bool = False
    bn_eps: float = BN_EPS


@dataclass(frozen=True)
class Recipe(Settings):
    """All that a weight file says about itself.

    Attributes:
        source: the layout that the file was converted from, e.g. "torchvision".
        source_sha256: of that file, 64 hexadecimal digits; empty for a network trained here from
            random weights.
        licence: of the weights, "unknown" where nobody said.
        version: of this record.
    """

    source: str = ""
    source_sha256: str = ""
    licence: str = "unknown"
    version: int = VERSION

    def as_dict(self) -> dict:
        """Plain values, for a checkpoint (`weights_only=True` reads them) or JSON."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def of(cls, settings: Settings, source: str) -> "Recipe":
        """The recipe of a network that was trained with a config.

        Args:
            settings: the config's.
            source: what training started from: "resnext_det" for random weights.
        """
        return cls(**asdict(settings), source=source)

    @classmethod
    def from_dict(cls, values: object, file: str) -> "Recipe":
        """Read the record of `file`.

        Raises:
            UserError: if it is not such a record.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{file}: its recipe is a {type(values).__name__}, not a record")
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - set(values)):
            raise UserError(f"{file}: its recipe lacks {', '.join(missing)}")
        if values["version"] != VERSION:
            version = str(values["version"])[:20]
            raise UserError(f"{file}: its recipe is of version {version!r}, not {VERSION}")
        for name in sorted(names - {"version"}):
            if not _CHECKS[name](values[name]):
                raise UserError(f"{file}: its recipe has {name} {str(values[name])[:50]!r}")
        known = {name: values[name] for name in names}
        for name in ("pixel_mean", "pixel_std"):
            known[name] = tuple(float(v) for v in known[name])
        return cls(**{**known, "bn_eps": float(known["bn_eps"])})


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _are_three(values: object) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3 and all(map(_is_number, values))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


# What each field of a file's record has to be
_CHECKS: dict[str, Callable[[object], bool]] = {
    "variant": lambda v: _is_text(v) and re.fullmatch(r"R-\d+|X-\d+-\d+x\d+d", v) is not None,
    "channel_order": lambda v: v in ("RGB", "BGR"),
    "pixel_mean": _are_three,
    "pixel_std": lambda v: _are_three(v) and min(v) > 0,
    "stride_in_1x1": lambda v: isinstance(v, bool),
    "bn_eps": lambda v: _is_number(v) and v > 0,
    "source": _is_text,
    "source_sha256": _is_text,
    "licence": _is_text,
}


def settings_of(cfg: CfgNode) -> Settings | None:
    """What a config says of the fields that weights depend on; None without a ResNeXt."""
    if "resnext" not in cfg.MODEL.BACKBONE.NAME:
        return None
    return Settings(
        variant=_variant(cfg),
        channel_order=cfg.INPUT.FORMAT,
        pixel_mean=tuple(map(float, cfg.MODEL.PIXEL_MEAN)),
        pixel_std=tuple(map(float, cfg.MODEL.PIXEL_STD)),
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
    )


def _variant(cfg: CfgNode) -> str:
    if not is_cifar(cfg):
        return str(variant_from_config(cfg))
    resnets = cfg.MODEL.RESNETS  # a depth of Appendix A, which `Variant` does not know
    return f"X-{resnets.DEPTH}-{resnets.NUM_GROUPS}x{resnets.WIDTH_PER_GROUP}d"
