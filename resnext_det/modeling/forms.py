"""Exact conversion of state dicts between the three forms of a block (Fig. 3).

| form | tensors of block `res2.0.`, with C paths of width d |
|---|---|
| c | `conv1.weight` (Cd, in, 1, 1), `conv2.weight` (Cd, d, 3, 3), `conv3.weight` (out, Cd, 1, 1) |
| b | `paths.i.conv1.weight` (d, in, 1, 1), `paths.i.conv2.weight` (d, d, 3, 3), `conv3.weight` |
| a | as b, but `paths.i.conv3.weight` (out, d, 1, 1) and `norm.*` for c's `conv3.norm.*` |

Norms of conv1 and conv2 split per channel along with their layers. Everything else keeps its name.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .blocks import FORMS

_BLOCK = re.compile(r"^((?:.*\.)?res\d+\.\d+\.)(.+)$")
_SPLIT = re.compile(r"^conv[12]\.")
_PATH = re.compile(r"^paths\.(\d+)\.(.+)$")


def form_of(state_dict: Mapping[str, Tensor]) -> str:
    """Tell the form of a network from its names; one without paths is in form c."""
    if any(".paths.0.conv3." in name for name in state_dict):
        return "a"
    if any(".paths.0.conv1." in name for name in state_dict):
        return "b"
    return "c"


def convert_form(state_dict: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """Convert a backbone's or a whole detector's state dict to another form, exactly.

    Args:
        state_dict: in any form; names may have any prefix before `res2...`.
        form: "a", "b" or "c".

    Returns:
        A new dict; tensors that no conversion touches are shared with `state_dict`.

    Raises:
        ValueError: for an unknown form, a dict without blocks such as a wrapped checkpoint, or a
            block that only form c has (deformable layers).
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r} is not one of {', '.join(FORMS)}")
    if form_of(state_dict) == form:
        return dict(state_dict)
    blocks: dict[str, dict[str, Tensor]] = {}
    converted: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        match = _BLOCK.match(name)
        if match is None:
            converted[name] = tensor
        else:
            blocks.setdefault(match[1], {})[match[2]] = tensor
    if not blocks:
        raise ValueError("no block such as res2.0 is in the dict: pass the weights themselves")
    for prefix, block in blocks.items():
        grouped = _merge(block)
        result = grouped if form == "c" else _split(prefix, grouped, sums_paths=form == "a")
        converted.update({prefix + name: tensor for name, tensor in result.items()})
    return converted


def _merge(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Forms a, b -> c; c comes back as it is."""
    merged: dict[str, Tensor] = {}
    paths: dict[str, dict[int, Tensor]] = {}
    for name, tensor in block.items():
        match = _PATH.match(name)
        if match is not None:
            paths.setdefault(match[2], {})[int(match[1])] = tensor
        else:
            merged[re.sub(r"^norm\.", "conv3.norm.", name)] = tensor
    for name, by_path in paths.items():
        tensors = [by_path[i] for i in range(len(by_path))]
        if tensors[0].dim() == 0:  # num_batches_tracked, the same in every path
            merged[name] = tensors[0]
        else:
            merged[name] = torch.cat(tensors, dim=1 if name == "conv3.weight" else 0)
    return merged


def _split(prefix: str, block: Mapping[str, Tensor], *, sums_paths: bool) -> dict[str, Tensor]:
    """Form c -> a (`sums_paths`) or b."""
    if "conv2_offset.weight" in block:
        raise ValueError(f"{prefix[:-1]} has deformable layers, which only form c has")
    channels, per_path = block["conv2.weight"].shape[:2]
    cardinality = channels // per_path
    split: dict[str, Tensor] = {}
    for name, tensor in block.items():
        if _SPLIT.match(name) or (sums_paths and name == "conv3.weight"):
            if tensor.dim() == 0:
                parts = (tensor,) * cardinality
            else:
                parts = tensor.chunk(cardinality, dim=1 if name == "conv3.weight" else 0)
            for index, part in enumerate(parts):
                split[f"paths.{index}.{name}"] = part.clone()
        elif sums_paths and name.startswith("conv3.norm."):
            split[name.removeprefix("conv3.")] = tensor
        else:
            split[name] = tensor
    return split
