"""What weights expect of the network and of the images, kept in the file beside the tensors."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from detectron2.config import CfgNode

from ..errors import UserError
from ..modeling import variant_from_config
from ..variants import Variant

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
    def trained_here(cls, settings: Settings) -> "Recipe":
        """The recipe of a network that was trained from random weights with a config."""
        return cls(**asdict(settings), source="resnext_det")

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
        known = {name: values[name] for name in names}
        try:
            for name in ("pixel_mean", "pixel_std"):
                known[name] = tuple(float(v) for v in known[name])
            known["bn_eps"] = float(known["bn_eps"])
        except (TypeError, ValueError) as error:
            raise UserError(f"{file}: its recipe is damaged: {error}") from error
        if known["version"] != VERSION:
            raise UserError(f"{file}: its recipe is of version {known['version']}, not {VERSION}")
        return cls(**known)


def settings_of(cfg: CfgNode) -> Settings | None:
    """What a config says of the fields that weights depend on; None without a ResNeXt."""
    if "resnext" not in cfg.MODEL.BACKBONE.NAME:
        return None
    return Settings(
        variant=str(variant_from_config(cfg)),
        channel_order=cfg.INPUT.FORMAT,
        pixel_mean=tuple(map(float, cfg.MODEL.PIXEL_MEAN)),
        pixel_std=tuple(map(float, cfg.MODEL.PIXEL_STD)),
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
    )


# A recipe's fields and the config's keys for them
_KEYS = {
    "channel_order": "INPUT.FORMAT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "variant": "MODEL.RESNETS",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "bn_eps": "the epsilon of batch norms",
}


def require_agreement(
    recipe: Recipe,
    settings: Settings,
    file: str,
    paste: Callable[[Recipe, Sequence[str]], str],
) -> None:
    """Compare a file's recipe with a config.

    Args:
        recipe: the file's.
        settings: the config's.
        file: for the message.
        paste: writes the lines that would make the config agree, given the fields that differ.

    Raises:
        UserError: naming each field that differs with both values, and the lines to paste.
    """
    differ = [name for name in _KEYS if not _same(getattr(recipe, name), getattr(settings, name))]
    if differ:
        found = [
            f"{_KEYS[name]} is {shown(getattr(settings, name))} and the file's {name} is "
            f"{shown(getattr(recipe, name))}"
            for name in differ
        ]
        lines = paste(recipe, differ)
        raise UserError(
            f"{file} does not go with the config: {'; '.join(found)}."
            + (f" To use this file, paste into the config:\n{lines}" if lines else "")
        )


def _same(a: object, b: object) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-9)
    return a == b


def shown(value: object) -> str:
    """A value for a message, e.g. [123.675, 116.28, 103.53]."""
    if isinstance(value, tuple):
        return f"[{', '.join(f'{v:g}' for v in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _variant_lines(name: str) -> list[str]:
    try:
        variant = Variant.parse(name)
    except ValueError:  # a CIFAR network, which no detector's config names
        return []
    return [
        f"    DEPTH: {variant.depth}",
        f"    NUM_GROUPS: {variant.cardinality}",
        f"    WIDTH_PER_GROUP: {variant.width}",
    ]


def yaml_lines(recipe: Recipe, fields_: Sequence[str]) -> str:
    """Lines of a YAML config that say what `recipe` says of some fields."""
    model, resnets = [], []
    for name in ("pixel_mean", "pixel_std"):
        if name in fields_:
            model.append(f"  {name.upper()}: {shown(getattr(recipe, name))}")
    if "variant" in fields_:
        resnets += _variant_lines(recipe.variant)
    if "stride_in_1x1" in fields_:
        resnets.append(f"    STRIDE_IN_1X1: {recipe.stride_in_1x1}")
    lines = ["INPUT:", f"  FORMAT: {recipe.channel_order}"] if "channel_order" in fields_ else []
    if resnets:
        model += ["  RESNETS:", *resnets]
    return "\n".join(lines + (["MODEL:", *model] if model else []))
