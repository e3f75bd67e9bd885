"""What a weight file expects of images and strides, told from whatever knows it.

The command line knows best, then the file's own recipe, then the catalog (by the file's sha256),
then the convention of its source. Nobody guesses: where none of them knows, the user is asked.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UserError
from .agreement import shown
from .catalog import PublishedWeights
from .network import Network
from .recipe import (
    CIFAR10,
    CIFAR100,
    DETECTRON,
    DETECTRON2_MSRA,
    IMAGENET,
    Preprocessing,
    Recipe,
)
from .sources import Conversion


@dataclass(frozen=True)
class Options:
    """What the user says of the input; None leaves it to what else is known.

    Attributes:
        source: a name of `SOURCES`.
        wrapper: the key of the checkpoint that holds the tensors, e.g. "state_dict".
        input_order: "RGB" or "BGR", what the file expects.
        pixel_mean: what the file expects, channels in that order, images of 0..255.
        pixel_std: likewise.
        stride_in_1x1: whether the strides are in the first 1x1 layers.
        licence: of the weights.
    """

    source: str | None = None
    wrapper: str | None = None
    input_order: str | None = None
    pixel_mean: tuple[float, float, float] | None = None
    pixel_std: tuple[float, float, float] | None = None
    stride_in_1x1: bool | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: for a mean or std that is not finite, or a std that is not positive.
        """
        for name, low in (("pixel_mean", -math.inf), ("pixel_std", 0)):
            values = getattr(self, name)
            if values and not all(math.isfinite(v) and v > low for v in values):
                raise UserError(f"{name} {shown(values)}: three finite numbers, std above 0")


NOTHING_SAID = Options()


@dataclass(frozen=True)
class Facts:
    """What somebody knows of a file; None is unknown.

    Attributes:
        told_by: for the report.
        preprocessing: of the images.
        stride_in_1x1: whether the strides are in the first 1x1 layers.
        licence: of the weights.
    """

    told_by: str
    preprocessing: Preprocessing | None = None
    stride_in_1x1: bool | None = None
    licence: str | None = None


def facts_of(
    options: Options,
    recipe: Recipe | None,
    entry: PublishedWeights | None,
    convention: Facts,
    file: str,
) -> Facts:
    """Put together what is known of a file.

    Raises:
        UserError: if nobody knows its preprocessing or its strides.
    """
    known = [convention]
    if entry is not None:
        told = f"the catalog ({entry.name})"
        known.insert(0, Facts(told, entry.preprocessing, entry.stride_in_1x1, entry.licence))
    if recipe is not None:
        _require_no_contradiction(options, recipe, file)
        expects = Preprocessing(recipe.channel_order, recipe.pixel_mean, recipe.pixel_std)
        known.insert(0, Facts("its recipe", expects, recipe.stride_in_1x1, recipe.licence))

    def first(name: str) -> object:
        return next((v for f in known if (v := getattr(f, name)) is not None), None)

    stride = options.stride_in_1x1
    if stride is None and (stride := first("stride_in_1x1")) is None:
        raise UserError(
            f"{file} does not tell where its strides are: say --stride-in-1x1 yes (MSRA's "
            "ResNets) or no (torchvision's)"
        )
    told_by = next((f.told_by for f in known if f.preprocessing is not None), "")
    preprocessing = _said(options, first("preprocessing"))
    if preprocessing is None:
        raise UserError(
            f"{file} does not tell what images it expects: say --input-order, --pixel-mean and "
            "--pixel-std, e.g. --input-order RGB --pixel-mean 123.675 116.28 103.53 "
            "--pixel-std 58.395 57.12 57.375"
        )
    if (options.input_order, options.pixel_mean, options.pixel_std) != (None, None, None):
        told_by = "the command line"
    licence = options.licence or first("licence") or "unknown"
    return Facts(told_by, preprocessing, stride, licence)


def _require_no_contradiction(options: Options, recipe: Recipe, file: str) -> None:
    """Refuse to say of a file what its recipe, which was proved, says otherwise."""
    said = {
        "channel_order": options.input_order,
        "pixel_mean": options.pixel_mean,
        "pixel_std": options.pixel_std,
        "stride_in_1x1": options.stride_in_1x1,
    }
    for name, value in said.items():
        if value is not None and value != getattr(recipe, name):
            raise UserError(
                f"{file} says in its recipe that {name} is {shown(getattr(recipe, name))}, not "
                f"{shown(value)}: leave that option out, or convert the source's file anew"
            )


def _said(options: Options, known: Preprocessing | None) -> Preprocessing | None:
    """What the command line says of the preprocessing, filled up with what is known."""
    if known is None:
        said = (options.input_order, options.pixel_mean, options.pixel_std)
        return None if None in said else Preprocessing(*said)
    known = known.reordered(options.input_order or known.channel_order)
    return Preprocessing(
        known.channel_order,
        options.pixel_mean or known.pixel_mean,
        options.pixel_std or known.pixel_std,
    )


# as in OpenMMLab's resnet50_caffe, resnet50_msra, detectron2/resnext101_32x8d
_NOT_TORCHVISIONS = re.compile("caffe|msra|detectron", re.IGNORECASE)
_NUMBERS = r"=\s*[\[(]\s*([\d.]+)\s*,\s*([\d.]+)\s*,\s*([\d.]+)\s*,?\s*[\])]"


def _openmmlab(told_by: str, conversion: Conversion, config: str) -> Facts:
    """What the config inside an OpenMMLab checkpoint says; a classifier without one is ImageNet's.

    A detector's may be BGR, and its style "caffe" (the stride in the 1x1 layers).
    """
    mean, std = (re.search(rf"\b{name}{_NUMBERS}", config) for name in ("mean", "std"))
    to_rgb = re.search(r"\b(?:bgr_)?to_rgb=(True|False)", config)
    if mean and std and to_rgb:
        order = "RGB" if to_rgb[1] == "True" else "BGR"
        mean, std = (tuple(map(float, found.groups())) for found in (mean, std))
        stride = bool(re.search(r"""\bstyle=['"]caffe""", config))
        return Facts("the config in the file", Preprocessing(order, mean, std), stride)
    if any("detector" in reason for reason in conversion.dropped):
        conversion.notes.append(
            "a detector without its config in the file: RGB images and ImageNet's mean and std are "
            "assumed, but MMDetection's detectors of style caffe take BGR images (--input-order)"
        )
    return Facts(told_by, IMAGENET, stride_in_1x1=False)


def convention_of(
    source: str, network: Network, conversion: Conversion, record: Mapping[str, object]
) -> Facts:
    """What files of a source expect, as their publishers document it.

    Args:
        source: a name of `SOURCES`.
        network: of the file.
        conversion: of the file.
        record: what stands beside the tensors, e.g. `__author__`; and `file_name`.
    """
    told_by = f"the convention of {source} files"
    is_resnet = network.cardinality == 1
    if source == "caffe2":
        if conversion.merged_norms:
            expects = DETECTRON
        else:
            expects = DETECTRON2_MSRA if is_resnet else IMAGENET.reordered("BGR")
        return Facts(told_by, expects, is_resnet)  # MSRA's ResNets have the stride in the 1x1
    if source == "detectron2":
        if record.get("__author__") == "torchvision":  # Detectron2's convert-torchvision-to-d2.py
            return Facts(told_by, IMAGENET, stride_in_1x1=False)
        return Facts(told_by, None, None if is_resnet else False)
    if source == "openmmlab":
        return _openmmlab(told_by, conversion, str(record.get("config", "")))
    if source == "torchvision" and _NOT_TORCHVISIONS.search(str(record.get("file_name", ""))):
        return Facts(told_by)  # torchvision's names on networks of Caffe, whose images are BGR
    if network.is_cifar:
        expects = {10: CIFAR10, 100: CIFAR100}.get(network.num_classes)
        return Facts(told_by, expects, conversion.stride_in_1x1)
    return Facts(told_by, IMAGENET, bool(conversion.stride_in_1x1))
