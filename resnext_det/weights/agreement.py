"""Whether a config says what its weights expect, and what to paste where it does not."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import UserError
from ..variants import Variant
from .recipe import Recipe, Settings


@dataclass(frozen=True)
class ConfigWords:
    """How a kind of config says the fields of `Settings`.

    Attributes:
        weights: its key for the weight file.
        keys: its key for each field.
        lines: writes the lines that make it agree with a recipe, given the fields that differ.
    """

    weights: str
    keys: Mapping[str, str]
    lines: Callable[[Recipe, Sequence[str]], str]


def require_agreement(recipe: Recipe, settings: Settings, file: str, words: ConfigWords) -> None:
    """Compare a file's recipe with a config.

    Raises:
        UserError: naming each field that differs with both values, and the lines to paste.
    """
    differ = [
        name for name in words.keys if not _same(getattr(recipe, name), getattr(settings, name))
    ]
    if not differ:
        return
    found = [
        f"{words.keys[name]} is {shown(getattr(settings, name))} and the file's {name} is "
        f"{shown(getattr(recipe, name))}"
        for name in differ
    ]
    lines = words.lines(recipe, differ)
    advice = f" To use this file, paste into the config:\n{lines}" if lines else ""
    if "variant" in differ and variant_of(recipe) is None:
        advice = " No detector has such a network."
    raise UserError(f"{file} does not go with the config: {'; '.join(found)}.{advice}")


def _same(a: object, b: object) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-9)
    return a == b


def shown(value: object) -> str:
    """A value for a message or YAML, e.g. [123.675, 116.28, 103.53]."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_digits, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _digits(value: float) -> str:
    """All digits, without an exponent: YAML takes 1e-05 for a text."""
    text = f"{value:.12g}"
    return f"{value:.15f}".rstrip("0") if "e" in text else text


def variant_of(recipe: Recipe) -> Variant | None:
    """The network of a recipe; None for one of CIFAR, which no detector's config names."""
    try:
        return Variant.parse(recipe.variant)
    except ValueError:
        return None


def _yaml_lines(recipe: Recipe, differ: Sequence[str]) -> str:
    model, resnets = [], []
    for name in ("pixel_mean", "pixel_std"):
        if name in differ:
            model.append(f"  {name.upper()}: {shown(getattr(recipe, name))}")
    if "variant" in differ and (variant := variant_of(recipe)):
        resnets += [
            f"    DEPTH: {variant.depth}",
            f"    NUM_GROUPS: {variant.cardinality}",
            f"    WIDTH_PER_GROUP: {variant.width}",
        ]
    if "stride_in_1x1" in differ:
        resnets.append(f"    STRIDE_IN_1X1: {recipe.stride_in_1x1}")
    lines = ["INPUT:", f"  FORMAT: {recipe.channel_order}"] if "channel_order" in differ else []
    if resnets:
        model += ["  RESNETS:", *resnets]
    return "\n".join(lines + (["MODEL:", *model] if model else []))


YAML_WORDS = ConfigWords(
    weights="MODEL.WEIGHTS",
    keys={
        "channel_order": "INPUT.FORMAT",
        "pixel_mean": "MODEL.PIXEL_MEAN",
        "pixel_std": "MODEL.PIXEL_STD",
        "variant": "MODEL.RESNETS",
        "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
        "bn_eps": "the epsilon of batch norms",  # no key changes it
    },
    lines=_yaml_lines,
)
