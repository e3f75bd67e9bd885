"""The tree of Torch7 modules in a `.t7` file, and what it computes.

It is run as it stands, by the modules' own fields: it knows nothing of Detectron2's names, and so
can prove what the renaming makes of them.
"""

import re
from collections.abc import Callable, Iterator
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

# what a module with fields of a wrong type, number or shape makes PyTorch raise
_FAILURES = (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError)
_MAX_NESTING = 50  # of modules; a ResNeXt has 6 levels


def class_of(value: object) -> str:
    """A module's class such as `cudnn.SpatialConvolution`; of anything else "no module"."""
    name = getattr(value, "_typename", None) or "no module"
    name = name.decode("latin1") if isinstance(name, bytes) else str(name)
    return re.sub(r"[^\w. ]", "?", name)


def kind_of(module: object) -> str:
    """A module's class without the library: `SpatialConvolution` of nn and of cudnn."""
    return class_of(module).removeprefix("cudnn.").removeprefix("nn.")


def fields_of(module: object) -> dict[str, object]:
    """A module's fields by name."""
    fields = getattr(module, "_obj", None) or {}
    return {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in fields.items()}


def children_of(module: object, path: str = "") -> list[tuple[str, object]]:
    """A container's (path, module) in order; paths such as `4.0.1` count from 0.

    Raises:
        UserError: if its list of modules has gaps.
    """
    table = fields_of(module).get("modules")
    if isinstance(table, dict):
        table = [table.get(index) for index in range(1, len(table) + 1)]
    elif not isinstance(table, list):
        table = []
    for index, child in enumerate(table):
        if class_of(child) == "no module":
            raise UserError(f"module {path or 'root'} ({class_of(module)}) has no module {index}")
    return [(f"{path}.{index}".lstrip("."), child) for index, child in enumerate(table)]


def network_of(root: object) -> object:
    """The network's Sequential in a file's root: itself, in a table's `model`, or in a
    DataParallelTable.

    Raises:
        UserError: if there is none.
    """
    if isinstance(root, dict):
        root = root.get(b"model", root.get("model"))
    if kind_of(root) == "DataParallelTable" and children_of(root):
        root = children_of(root)[0][1]
    if kind_of(root) != "Sequential":
        raise UserError(f"the file holds no network: nn.Sequential expected, not {class_of(root)}")
    return root


def walk(network: object) -> Iterator[tuple[str, object]]:
    """Yield (path, module) of the whole tree in order of execution; the network's path is "".

    Raises:
        UserError: if a module occurs twice, as one inside itself does, or is nested too deep.
    """
    seen, stack = set(), [("", network)]
    while stack:
        path, module = stack.pop()
        if id(module) in seen or path.count(".") > _MAX_NESTING:
            raise UserError(f"module {path[:100]} ({class_of(module)}) occurs twice or too deep")
        seen.add(id(module))
        yield path, module
        stack += reversed(children_of(module, path))


def run_t7(root: object, images: Tensor) -> dict[str, Tensor]:
    """Compute a network's features from the tree itself, in evaluation mode.

    Args:
        root: what `read_t7` returned.
        images: (N, 3, H, W), normalised; 224x224 for ImageNet, 32x32 for CIFAR networks.

    Returns:
        `res2`, `res3`, ...: the outputs of the stages; `linear`: logits (N, num_classes).

    Raises:
        UserError: for a module that a ResNeXt does not have or that cannot be computed.
    """
    network = network_of(root)
    for _ in walk(network):  # its checks bound what follows
        pass
    features, x = {}, images
    with torch.no_grad():
        for path, module in children_of(network):
            x = _run(path, module, x)
            if kind_of(module) == "Sequential":
                features[f"res{2 + len(features)}"] = x
    return {**features, "linear": x}


def _run(path: str, module: object, x: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    kind, children = kind_of(module), children_of(module, path)
    if kind == "Sequential":
        return reduce(lambda value, child: _run(*child, value), children, x)
    if kind == "ConcatTable":
        return [_run(*child, x) for child in children]
    if kind not in _COMPUTE:
        raise UserError(f"module {path} is a {class_of(module)}, which a ResNeXt does not have")
    try:
        return _COMPUTE[kind](fields_of(module), x)
    except _FAILURES as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"module {path} ({class_of(module)}) does not run: {reason}") from error


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.dtype)


def _pair(fields: dict, name: str) -> tuple[int, int]:
    """E.g. (kH, kW); old files lack padding."""
    fields = {"padH": 0, "padW": 0, **fields}
    return fields[f"{name}H"], fields[f"{name}W"]


def _convolution(fields: dict, x: Tensor) -> Tensor:
    groups = fields.get("groups", 1)
    weight = _tensor(fields["weight"], x)
    weight = weight.view(len(weight), x.shape[1] // groups, *_pair(fields, "k"))
    bias = None if fields.get("bias") is None else _tensor(fields["bias"], x)
    return F.conv2d(x, weight, bias, _pair(fields, "d"), _pair(fields, "pad"), groups=groups)


def _batch_norm(fields: dict, x: Tensor) -> Tensor:
    mean, weight, bias = (_tensor(fields[k], x) for k in ("running_mean", "weight", "bias"))
    if "running_var" in fields:
        var = _tensor(fields["running_var"], x)
    else:  # before nn's version 2: the inverse standard deviation, eps included
        var = _tensor(fields["running_std"], x) ** -2 - fields["eps"]
    return F.batch_norm(x, mean, var, weight, bias, eps=fields["eps"])


def _max_pool(fields: dict, x: Tensor) -> Tensor:
    ceil = bool(fields.get("ceil_mode"))
    k, d, pad = (_pair(fields, name) for name in ("k", "d", "pad"))
    return F.max_pool2d(x, k, d, pad, ceil_mode=ceil)


def _average_pool(fields: dict, x: Tensor) -> Tensor:
    ceil, padded = bool(fields.get("ceil_mode")), bool(fields.get("count_include_pad", True))
    k, d, pad = (_pair(fields, name) for name in ("k", "d", "pad"))
    return F.avg_pool2d(x, k, d, pad, ceil_mode=ceil, count_include_pad=padded)


def _join(fields: dict, xs: list[Tensor]) -> Tensor:
    batched = fields.get("nInputDims") == xs[0].dim() - 1
    return torch.cat(xs, dim=fields["dimension"] - 1 + batched)


_COMPUTE: dict[str, Callable] = {
    "Identity": lambda fields, x: x,
    "CAddTable": lambda fields, xs: reduce(torch.add, xs),
    "JoinTable": _join,
    "SpatialConvolution": _convolution,
    "SpatialConvolutionMM": _convolution,
    "SpatialBatchNormalization": _batch_norm,
    "ReLU": lambda fields, x: F.relu(x),
    "SpatialMaxPooling": _max_pool,
    "SpatialAveragePooling": _average_pool,
    "View": lambda fields, x: x.reshape(len(x), *fields["size"].tolist()),
    "Reshape": lambda fields, x: x.reshape(len(x), *fields["size"].tolist()),
    "Linear": lambda fields, x: F.linear(
        x, _tensor(fields["weight"], x), _tensor(fields["bias"], x)
    ),
}
