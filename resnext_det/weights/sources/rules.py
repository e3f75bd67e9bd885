"""Renaming by rules, with an account of every tensor."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

# (pattern, replacement), applied in turn with re.sub
Rules = Sequence[tuple[str, str]]
# (pattern, why a tensor of that name is left out); the first that is found counts
Drops = Sequence[tuple[str, str]]

# Detectron2's names of an ImageNet network in form (c) of Fig. 3.
_LAYER = r"(stem\.conv1|res[2-5]\.\d+\.(conv[123]|shortcut))"
_KNOWN = re.compile(
    rf"^({_LAYER}\.(weight|norm\.(weight|bias|running_mean|running_var|num_batches_tracked))"
    r"|linear\.(weight|bias))$"
)


@dataclass
class Conversion:
    """What became of the tensors of a file.

    Attributes:
        tensors: Detectron2's names (`stem.conv1.weight`, ..., `linear.bias`) to tensors.
        renamed: the source's names to Detectron2's, one entry a tensor of the file that was used.
        dropped: for each reason, the source's names of the tensors that were left out.
        unexplained: the source's names that no rule knows. Anything here is a failure.
        stride_in_1x1: whether the stride is in the first 1x1 layer, where the file tells.
        merged_norms: whether the source has batch norms merged into a scale and a shift.
        notes: for the report, changes of values.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)
    stride_in_1x1: bool | None = None
    merged_norms: bool = False
    notes: list[str] = field(default_factory=list)


def is_known(name: str) -> bool:
    """Whether `name` is Detectron2's name of a tensor of a ResNeXt with classifier."""
    return _KNOWN.match(name) is not None


def rename(name: str, rules: Rules) -> str:
    """Apply all rules to one name."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def drop_reason(name: str, drops: Drops) -> str | None:
    """Why a tensor is left out, or None if it is not."""
    return next((reason for pattern, reason in drops if re.search(pattern, name)), None)


def explained_name(name: str, rules: Rules, *, own_names: bool = False) -> str | None:
    """Detectron2's name of a tensor, or None if the rules make none of it.

    Args:
        name: the source's.
        rules: of renaming.
        own_names: whether names that are Detectron2's already count as explained.
    """
    new_name = rename(name, rules)
    return new_name if is_known(new_name) and (own_names or new_name != name) else None


def convert_by_rules(
    tensors: Mapping[str, Tensor], rules: Rules, drops: Drops = (), *, own_names: bool = False
) -> Conversion:
    """Rename tensors; the tensors themselves are shared.

    Args:
        tensors: by the source's names.
        rules: of renaming.
        drops: of leaving out.
        own_names: see `explained_name`.

    Raises:
        ValueError: if two tensors get one name.
    """
    result = Conversion()
    for name, tensor in tensors.items():
        if (reason := drop_reason(name, drops)) is not None:
            result.dropped.setdefault(reason, []).append(name)
        elif (new_name := explained_name(name, rules, own_names=own_names)) is None:
            result.unexplained.append(name)
        elif new_name in result.tensors:
            twin = next(n for n, new in result.renamed.items() if new == new_name)
            raise ValueError(f"{twin} and {name} both become {new_name}")
        else:
            result.renamed[name] = new_name
            result.tensors[new_name] = tensor
    return result


def share_explained(
    names: Iterable[str], rules: Rules, drops: Drops = (), *, own_names: bool = False
) -> float:
    """The share of `names` that the rules explain, 0 to 1."""
    names = list(names)
    explained = sum(
        drop_reason(name, drops) is not None
        or explained_name(name, rules, own_names=own_names) is not None
        for name in names
    )
    return explained / max(len(names), 1)
