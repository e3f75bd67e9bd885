"""The authors' Torch7 networks (facebookresearch/ResNeXt, models/resnext.lua).

A block is `Sequential{ConcatTable{branch, shortcut}, CAddTable, ReLU}`. Its branch is, in form (c)
of Fig. 3, conv BN ReLU, conv BN ReLU, conv BN; in form (b) a ConcatTable of C paths conv BN ReLU,
conv BN ReLU, then JoinTable, conv BN. The released files nest a branch's first layers in one more
Sequential than resnext.lua does. Names of tensors are paths in the tree that count from 0:

| path | Detectron2 |
|---|---|
| `0.weight` | `stem.conv1.weight` |
| `1.running_var` | `stem.conv1.norm.running_var` |
| `4.0.0.0.0.3.weight`, flat `4.0.0.0.3.weight` | `res2.0.conv2.weight` |
| `4.0.0.1.0.weight` | `res2.0.shortcut.weight` |
| `10.bias` | `linear.bias` |
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...modeling.forms import convert_form
from ..t7_tree import children_of, class_of, fields_of, kind_of, network_of, walk
from .rules import Conversion

Node = tuple[str, object]  # (path, module)

_CONV, _NORM = "SpatialConvolution", "SpatialBatchNormalization"
_CONV_NORM_RELU = (_CONV, _NORM, "ReLU")
_SYNONYMS = {"SpatialConvolutionMM": _CONV, "Reshape": "View"}
_CLASSIFIER = ("SpatialAveragePooling", "View", "Linear")
_CIFAR = (*_CONV_NORM_RELU, *["Sequential"] * 3, *_CLASSIFIER)
_IMAGENET = (*_CONV_NORM_RELU, "SpatialMaxPooling", *["Sequential"] * 4, *_CLASSIFIER)
_PARAMETERS = {
    _CONV: ("weight",),
    _NORM: ("weight", "bias", "running_mean", "running_var"),
    "Linear": ("weight", "bias"),
}
_EPS = 1e-5  # of Detectron2's norms
# a module's fields that no result in evaluation mode depends on
_DROPPED = {
    r"grad(Weight|Bias)": "gradients",
    r"output|gradInput|f(gradI|i)nput|save_(mean|std)|addBuffer|indices|buffer2?|centered|std"
    r"|normalized|_\w+": "buffers of the training step",
    r"size|batchsize": "sizes that View and Reshape give",
}


def from_torch7(root: object) -> Conversion:
    """Rename a network's tensors; those of form (b) are merged into form (c).

    Args:
        root: what `t7.read_t7` returned.

    Returns:
        An account of every tensor under its path. The tensors share memory with the tree but for
        merged ones and variances that took up another eps.

    Raises:
        UserError: if the tree is not a ResNeXt; names the module that was not expected.
    """
    network = network_of(root)
    modules = list(walk(network))
    names = dict(_layers(network))
    result, converted, changes = Conversion(), {}, Counter()
    seen = {id(module) for _, module in modules} | {id(root)}
    for path, module in modules:
        name = names.get(path)
        required = _parameters(module) if name else ()
        for field, array in _arrays(module, seen):
            source = f"{path}.{field}".lstrip(".")
            if field in required and array.size and array.dtype.kind == "f":
                # the old running_std arrives as running_var
                target = f"{name}.{field.replace('running_std', 'running_var')}"
                converted[target] = _value((path, module), field, array, changes)
                result.renamed[source] = re.sub(r"paths\.\d+\.", "", target)
            elif (reason := _drop_reason(module, field, array)) is not None:
                result.dropped.setdefault(reason, []).append(source)
            else:
                result.unexplained.append(source)
        for field in required:
            if f"{path}.{field}" not in result.renamed:
                raise UserError(f"module {path} ({class_of(module)}) has no {field}")
    outside = [f"root.{name}" for name, _ in _arrays(root, seen)] if root is not network else []
    if outside:
        result.dropped["outside of the network"] = outside
    try:
        result.tensors = convert_form(converted, "c")
    except RuntimeError as error:
        raise UserError("the paths of a block of form (b) differ in size") from error
    result.stride_in_1x1 = _stride_in_1x1(network)
    result.notes = [f"{change} in {count} norms" for change, count in changes.items()]
    return result


def _same_kind(module: object) -> str:
    return _SYNONYMS.get(kind_of(module), kind_of(module))


def _expect(where: str, nodes: Sequence[Node], kinds: Sequence[str]) -> Sequence[Node]:
    """Return `nodes` if they are of the `kinds`."""
    for node, kind in zip_longest(nodes, kinds):
        if node is None:
            raise UserError(f"{where} ends without the {kind} that a ResNeXt has there")
        if kind is None or _same_kind(node[1]) != kind:
            expected = f"a {kind}" if kind else "nothing"
            raise UserError(
                f"module {node[0]} is a {class_of(node[1])}, and a ResNeXt has {expected} there"
            )
    return nodes


def _leaves(node: Node) -> list[Node]:
    """What nested Sequentials hold, in order of execution."""
    if kind_of(node[1]) != "Sequential":
        return [node]
    return [leaf for child in children_of(node[1], node[0]) for leaf in _leaves(child)]


def _layers(network: object) -> Iterator[tuple[str, str]]:
    """Yield (path, Detectron2's name of the layer), in form (b) with `paths.i`.

    Raises:
        UserError: for a module or a geometry that a ResNeXt does not have.
    """
    top = children_of(network)
    cifar = len(top) < 4 or kind_of(top[3][1]) != "SpatialMaxPooling"
    nodes = _expect("the network", top, _CIFAR if cifar else _IMAGENET)
    stages = [node for node in nodes if kind_of(node[1]) == "Sequential"]
    strided = _stride_in_1x1(network)
    layers = list(_named(["stem.conv1"], nodes[:2]))
    if not cifar:
        _check_geometry("the max pooling", nodes[3], 3, 2, 1)
    for index, (path, stage) in enumerate(stages):
        if not children_of(stage):
            raise UserError(f"module {path} is a stage without blocks")
        for block, node in enumerate(children_of(stage, path)):
            layers += _block(f"res{index + 2}.{block}", node)
    for name, node in layers:
        if _same_kind(node[1]) == _CONV:
            _check_geometry(name, node, *_geometry(name, cifar, strided))
        yield node[0], name
    yield nodes[-1][0], "linear"


def _block(name: str, node: Node) -> Iterator[tuple[str, Node]]:
    """Yield (Detectron2's name, node) of a block's layers."""
    path, block = node
    (path, concat), *_ = _expect(
        f"block {path}", children_of(block, path), ("ConcatTable", "CAddTable", "ReLU")
    )
    if len(children_of(concat)) != 2:
        raise UserError(f"module {path} does not hold a branch and a shortcut")
    branch, shortcut = (_leaves(child) for child in children_of(concat, path))
    if branch and kind_of(branch[0][1]) == "ConcatTable":
        last = _expect(f"branch {path}.0", branch, ("ConcatTable", "JoinTable", _CONV, _NORM))[2:]
        for index, way in enumerate(children_of(branch[0][1], branch[0][0])):
            layers = _expect(f"path {way[0]}", _leaves(way), _CONV_NORM_RELU * 2)
            yield from _named([f"{name}.paths.{index}.conv{i}" for i in (1, 2)], layers)
        yield from _named([f"{name}.conv3"], last)
    else:
        _expect(f"branch {path}.0", branch, (*_CONV_NORM_RELU * 2, _CONV, _NORM))
        yield from _named([f"{name}.conv{i}" for i in (1, 2, 3)], branch)
    if [kind_of(module) for _, module in shortcut] != ["Identity"]:
        _expect(f"shortcut {path}.1", shortcut, (_CONV, _NORM))
        yield from _named([f"{name}.shortcut"], shortcut)


def _named(names: Sequence[str], nodes: Sequence[Node]) -> Iterator[tuple[str, Node]]:
    """Name convolutions in turn, and their norms."""
    convs, norms = ([n for n in nodes if _same_kind(n[1]) == k] for k in (_CONV, _NORM))
    for name, conv, norm in zip(names, convs, norms, strict=True):
        yield name, conv
        yield f"{name}.norm", norm


def _stride_in_1x1(network: object) -> bool:
    """Whether the first layer of the second stage's branch has stride 2."""
    stages = [node for node in children_of(network) if kind_of(node[1]) == "Sequential"]
    firsts = [m for _, m in walk(stages[1][1]) if _same_kind(m) == _CONV]
    stride = fields_of(firsts[0]).get("dW") if firsts else None
    return isinstance(stride, int) and stride == 2


def _geometry(name: str, cifar: bool, stride_in_1x1: bool) -> tuple[int, int, int]:
    """Kernel, stride and padding of a ResNeXt's layer."""
    if name == "stem.conv1":
        return (3, 1, 1) if cifar else (7, 2, 3)
    layer = name.rpartition(".")[2]
    where = {"shortcut", "conv1" if stride_in_1x1 else "conv2"}
    stride = 2 if layer in where and re.match(r"res[345]\.0\.", name) else 1
    return (3, stride, 1) if layer == "conv2" else (1, stride, 0)


def _check_geometry(name: str, node: Node, kernel: int, stride: int, padding: int) -> None:
    fields = fields_of(node[1])
    for field, value in {"k": kernel, "d": stride, "pad": padding}.items():
        for key in (f"{field}W", f"{field}H"):
            found = fields.get(key, 0)
            if not isinstance(found, int) or found != value:
                shown = found if isinstance(found, int | float) else type(found).__name__
                raise UserError(
                    f"module {node[0]} ({class_of(node[1])}) has {key} = {shown}, "
                    f"and {name} of a ResNeXt has {value}"
                )


def _parameters(module: object) -> tuple[str, ...]:
    """The fields whose tensors Detectron2's layer has."""
    kind, fields = _same_kind(module), fields_of(module)
    if kind == _NORM and "running_std" in fields and "running_var" not in fields:
        return (*_PARAMETERS[kind][:-1], "running_std")
    return _PARAMETERS[kind]


def _items(name: str, value: object) -> list[tuple[str, object]]:
    """(name, item) of a table's, list's or module's items, the last first."""
    if isinstance(value, list | tuple):
        table = dict(enumerate(value))
    else:
        table = value if isinstance(value, dict) else fields_of(value)
    keys = (key.decode("latin1") if isinstance(key, bytes) else key for key in table)
    named = [
        (f"{name}.{key}".lstrip("."), item) for key, item in zip(keys, table.values(), strict=True)
    ]
    return named[::-1]


def _arrays(start: object, seen: set[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of what a module or table holds, in depth, and put it into `seen`."""
    stack = _items("", start)
    while stack:
        name, value = stack.pop()
        if isinstance(value, np.ndarray):
            yield name, value
        elif id(value) not in seen:
            seen.add(id(value))
            stack += _items(name, value)


def _drop_reason(module: object, field: str, array: np.ndarray) -> str | None:
    if array.size == 0:
        return "empty tensors"
    for pattern, reason in _DROPPED.items():
        if re.fullmatch(pattern, field.partition(".")[0]):
            return reason
    if field == "bias" and _same_kind(module) == _CONV and not array.any():
        return "zero biases of convolutions"
    return None


def _value(node: Node, field: str, array: np.ndarray, changes: Counter) -> Tensor:
    """A parameter as Detectron2 has it; counts the norms whose variance is `changes`d."""
    where, module = f"module {node[0]} ({class_of(node[1])})", node[1]
    fields = fields_of(module)
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if field == "weight" and _same_kind(module) == _CONV and tensor.dim() == 2:
        kernel = (fields["kH"], fields["kW"])  # (out, in kH kW) of SpatialConvolutionMM
        if tensor.shape[1] % (kernel[0] * kernel[1]):
            raise UserError(f"{where} of {kernel} has weights {tuple(tensor.shape)}")
        return tensor.view(len(tensor), -1, *kernel)
    if field not in ("running_var", "running_std"):
        return tensor
    eps = fields.get("eps")
    if not isinstance(eps, int | float):
        raise UserError(f"{where} has no eps")
    if field == "running_std":
        changes["running_std, the inverse deviation, became running_var"] += 1
        return (tensor.double() ** -2 - _EPS).to(tensor.dtype)
    if eps != _EPS:
        changes[f"eps {eps:g} became {_EPS:g}, the difference added to running_var,"] += 1
        return (tensor.double() + (eps - _EPS)).to(tensor.dtype)
    return tensor
