"""Torch7 `.t7` files of random ResNeXts, written as torch7's File.lua and models/resnext.lua do."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from resnext_det.variants import BLOCKS_PER_STAGE

NIL, NUMBER, STRING, TABLE, TORCH, BOOLEAN, FUNCTION = range(7)
_ELEMENTS = {torch.float32: "Float", torch.float64: "Double", torch.int64: "Long"}


@dataclass(eq=False)
class Module:
    """An object of a torch class, e.g. `Module("nn.Sequential", {"modules": [...]})`."""

    kind: str
    fields: dict


@dataclass(eq=False)
class Sizes:
    """A torch.LongStorage."""

    values: Sequence[int]


class T7Writer:
    """Writes the binary format; objects that occur again are written as references."""

    def __init__(self, file: BinaryIO, *, cuda: bool = False) -> None:
        """
        Args:
            file: open for writing bytes.
            cuda: write float32 tensors as torch.CudaTensor.
        """
        self.file = file
        self.cuda = cuda
        self._indices: dict[object, int] = {}
        self._alive: list[object] = []  # so that ids stay unique

    def ints(self, *values: int) -> None:
        self.file.write(struct.pack(f"<{len(values)}i", *values))

    def longs(self, *values: int) -> None:
        self.file.write(struct.pack(f"<{len(values)}q", *values))

    def chars(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        self.ints(len(data))
        self.file.write(data)

    def write(self, value: object) -> None:
        """Write nil, a number, string, boolean, table (dict or list), module or tensor."""
        if value is None:
            self.ints(NIL)
        elif isinstance(value, bool):
            self.ints(BOOLEAN, value)
        elif isinstance(value, int | float):
            self.ints(NUMBER)
            self.file.write(struct.pack("<d", value))
        elif isinstance(value, str | bytes):
            self.ints(STRING)
            self.chars(value)
        elif isinstance(value, dict | list):
            self._write_table(value)
        elif isinstance(value, Module):
            if self._begin(TORCH, id(value), value, value.kind):
                self.write(value.fields)
        elif isinstance(value, Sizes):
            if self._begin(TORCH, id(value), value, "torch.LongStorage"):
                self.longs(len(value.values), *value.values)
        else:
            self._write_tensor(value)

    def _begin(self, kind: int, key: object, value: object, name: str = "") -> bool:
        """Write type, reference index and class; False if that is all, on a second occurrence."""
        known = key in self._indices
        self._alive.append(value)
        self.ints(kind, self._indices.setdefault(key, len(self._indices) + 1))
        if not known and name:
            self.chars("V 1")
            self.chars(name)
        return not known

    def _write_table(self, table: dict | list) -> None:
        if self._begin(TABLE, id(table), table):
            items = enumerate(table, 1) if isinstance(table, list) else table.items()
            self.ints(len(table))
            for key, value in items:
                self.write(key)
                self.write(value)

    def _write_tensor(self, tensor: Tensor) -> None:
        element = "Cuda" if self.cuda and tensor.dtype == torch.float32 else _ELEMENTS[tensor.dtype]
        if not self._begin(TORCH, id(tensor), tensor, f"torch.{element}Tensor"):
            return
        if tensor.numel() == 0:
            self.ints(0)
            self.longs(1)
            self.write(None)
            return
        self.ints(tensor.dim())
        self.longs(*tensor.shape, *tensor.stride(), tensor.storage_offset() + 1)
        storage = tensor.untyped_storage()
        if self._begin(TORCH, ("storage", storage.data_ptr()), tensor, f"torch.{element}Storage"):
            whole = torch.empty(0, dtype=tensor.dtype).set_(storage)
            self.longs(len(whole))
            self.file.write(whole.numpy().tobytes())


class Builder:
    """Modules as models/resnext.lua makes them, with random weights and BN statistics."""

    def __init__(
        self, seed: int = 0, *, layers: str = "cudnn", eps: float = 1e-5, running_std: bool = False
    ) -> None:
        """
        Args:
            seed: of all weights.
            layers: "cudnn", "nn", or "mm" for nn.SpatialConvolutionMM with its 2-d weights.
            eps: of the norms.
            running_std: store the inverse deviation as nn's norms did before version 2.
        """
        self.generator = torch.Generator().manual_seed(seed)
        self.library = "cudnn" if layers == "cudnn" else "nn"
        self.conv_kind = "nn.SpatialConvolutionMM" if layers == "mm" else "SpatialConvolution"
        self.eps = eps
        self.running_std = running_std

    def random(self, *shape: int) -> Tensor:
        """Uniform in -0.5..0.5."""
        return torch.rand(shape, generator=self.generator) - 0.5

    def layer(self, kind: str, **fields: object) -> Module:
        """A module with the fields that every module has after `clearState`."""
        kind = kind if "." in kind else f"{self.library}.{kind}"
        empty = {"output": torch.empty(0), "gradInput": torch.empty(0)}
        return Module(kind, {"_type": "torch.FloatTensor", "train": False, **empty, **fields})

    def trained(self, kind: str, weight: Tensor, bias: Tensor | None, **fields: object) -> Module:
        """A module with parameters and the gradients of its last step."""
        tensors = {"weight": weight, "gradWeight": self.random(*weight.shape)}
        if bias is not None:
            tensors |= {"bias": bias, "gradBias": self.random(*bias.shape)}
        return self.layer(kind, **tensors, **fields)

    def conv(self, inputs: int, outputs: int, k: int = 1, stride: int = 1, c: int = 1) -> Module:
        """A convolution of `c` groups without bias, padded to keep the size."""
        geometry = dict(kW=k, kH=k, dW=stride, dH=stride, padW=k // 2, padH=k // 2)
        planes = dict(nInputPlane=inputs, nOutputPlane=outputs, groups=c)
        weight = self.random(outputs, inputs // c, k, k) * (12 * c / (inputs * k * k)) ** 0.5
        if self.conv_kind.endswith("MM"):
            weight = weight.flatten(1)
        return self.trained(self.conv_kind, weight, None, **geometry, **planes)

    def norm(self, channels: int) -> Module:
        """A norm whose every statistic is random."""
        var = 1 + self.random(channels)
        spread = {"running_std": (var + self.eps) ** -0.5} if self.running_std else {}
        spread = spread or {"running_var": var}
        return self.trained(
            "SpatialBatchNormalization",
            1 + self.random(channels),
            0.4 * self.random(channels),
            running_mean=0.4 * self.random(channels),
            eps=self.eps,
            momentum=0.1,
            affine=True,
            nDim=4,
            save_mean=torch.empty(0),
            save_std=torch.empty(0),
            **spread,
        )

    def conv_norm(self, *args: int, relu: bool = True, c: int = 1) -> list[Module]:
        """Convolution, norm and, with `relu`, ReLU."""
        conv = self.conv(*args, c=c)
        modules = [conv, self.norm(conv.fields["nOutputPlane"])]
        return [*modules, self.layer("ReLU", inplace=True)] if relu else modules

    def pool(self, kind: str, k: int, stride: int, padding: int = 0) -> Module:
        """Max or average pooling."""
        geometry = dict(kW=k, kH=k, dW=stride, dH=stride, padW=padding, padH=padding)
        return self.layer(kind, **geometry, ceil_mode=False, count_include_pad=True)

    def chain(self, *modules: Module, kind: str = "nn.Sequential") -> Module:
        """A container."""
        return self.layer(kind, modules=list(modules))

    def branch(
        self, channels: int, outputs: int, c: int, d: int, stride: int, form: str, nested: bool
    ) -> Module:
        """A block's branch; `nested` as in the released files, else as in resnext.lua."""
        last = self.conv_norm(c * d, outputs, relu=False)
        if form == "c":
            first = self.conv_norm(channels, c * d) + self.conv_norm(c * d, c * d, 3, stride, c=c)
        else:
            paths = [
                self.chain(*self.conv_norm(channels, d), *self.conv_norm(d, d, 3, stride))
                for _ in range(c)
            ]
            join = self.layer("nn.JoinTable", dimension=2, size=Sizes([]))
            first = [self.chain(*paths, kind="nn.ConcatTable"), join]
        return self.chain(self.chain(*first), *last) if nested else self.chain(*first, *last)

    def block(self, channels: int, outputs: int, *args: object, stride: int) -> Module:
        """Branch and shortcut, their sum and ReLU; `args` as for `branch`."""
        c, d, form, nested = args
        branch = self.branch(channels, outputs, c, d, stride, form, nested)
        if channels == outputs:
            shortcut = self.layer("nn.Identity")
        else:
            shortcut = self.chain(*self.conv_norm(channels, outputs, 1, stride, relu=False))
        table = self.chain(branch, shortcut, kind="nn.ConcatTable")
        add = self.layer("nn.CAddTable", inplace=True)
        return self.chain(table, add, self.layer("ReLU", inplace=True))

    def network(
        self, blocks: Sequence[int], c: int, d: int, form: str, nested: bool, num_classes: int
    ) -> Module:
        """A whole network: for four stages an ImageNet one, for three a CIFAR one."""
        imagenet, channels = len(blocks) == 4, 64
        modules = self.conv_norm(3, 64, 7, 2) if imagenet else self.conv_norm(3, 64, 3)
        if imagenet:
            modules.append(self.pool("SpatialMaxPooling", 3, 2, 1))
        for index, count in enumerate(blocks):
            stage = []
            for i in range(count):
                stride = 2 if index > 0 and i == 0 else 1
                args = (channels, 256 * 2**index, c, d * 2**index, form, nested)
                stage.append(self.block(*args, stride=stride))
                channels = 256 * 2**index
            modules.append(self.chain(*stage))
        modules.append(self.pool("SpatialAveragePooling", 7 if imagenet else 8, 1))
        sizes = dict(size=Sizes([channels]), numElements=channels, numInputDims=3)
        modules.append(self.layer("nn.View", **sizes))
        weight = self.random(num_classes, channels) * (12 / channels) ** 0.5
        modules.append(self.trained("nn.Linear", weight, self.random(num_classes)))
        return self.chain(*modules)


def modules_of(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """Yield (path, module) in order of execution; paths count from 0."""
    yield path, module
    for index, child in enumerate(module.fields.get("modules", [])):
        yield from modules_of(child, f"{path}.{index}".lstrip("."))


def parameters_of(tree: Module) -> dict[str, Tensor]:
    """Path to tensor, in order of execution: weight, bias, running_mean, running_var."""
    names = ("weight", "bias", "running_mean", "running_var", "running_std")
    return {
        f"{path}.{name}": module.fields[name]
        for path, module in modules_of(tree)
        for name in names
        if name in module.fields
    }


def flatten_parameters(tree: Module) -> None:
    """Let all weights share one storage and all gradients another, as `getParameters` does."""
    for names in (("weight", "bias"), ("gradWeight", "gradBias")):
        owners = [(m.fields, n) for _, m in modules_of(tree) for n in names if n in m.fields]
        flat = torch.cat([fields[name].flatten() for fields, name in owners])
        parts = flat.split([fields[name].numel() for fields, name in owners])
        for (fields, name), part in zip(owners, parts, strict=True):
            fields[name] = part.view(fields[name].shape)


def write_t7(path: Path, root: object, *, cuda: bool = False) -> None:
    """Write any root."""
    with path.open("wb") as file:
        T7Writer(file, cuda=cuda).write(root)


def write_resnext_t7(
    path: Path,
    depth: int = 50,
    cardinality: int = 32,
    width: int = 4,
    form: str = "c",
    nested: bool = True,
    cifar: bool = False,
    num_classes: int = 1000,
    cuda: bool = False,
    seed: int = 0,
    **options: object,
) -> Module:
    """Write a network of random weights and return its tree.

    Args:
        path: the file.
        depth: see `BLOCKS_PER_STAGE`; 9 n + 2 for CIFAR.
        cardinality: C.
        width: d.
        form: "b" or "c" of Fig. 3.
        nested: the layout of the released files; False for that of resnext.lua.
        cifar: a network for 32x32 images.
        num_classes: of the classifier.
        cuda: write torch.CudaTensor.
        seed: of the weights.
        options: for `Builder`.
    """
    blocks = [(depth - 2) // 9] * 3 if cifar else BLOCKS_PER_STAGE[depth]
    builder = Builder(seed, **options)
    tree = builder.network(blocks, cardinality, width, form, nested, num_classes)
    flatten_parameters(tree)
    write_t7(path, tree, cuda=cuda)
    return tree
