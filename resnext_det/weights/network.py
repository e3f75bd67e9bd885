"""Which network some tensors are, told from their shapes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..modeling import CifarResNeXt, ResNeXt
from ..variants import BLOCKS_PER_STAGE


@dataclass(frozen=True)
class Network:
    """A ResNeXt with the sizes that its tensors tell.

    Attributes:
        blocks: number of blocks in each stage; four stages, or three in a CIFAR network.
        cardinality: C, the groups of the 3x3 layers.
        width: d, channels per group in res2.
        stem_channels: channels of the stem.
        res2_channels: output channels of res2.
        num_classes: of the classifier, None without one.
        residual: whether it has shortcuts (Section 5.1).
    """

    blocks: tuple[int, ...]
    cardinality: int
    width: int
    stem_channels: int = 64
    res2_channels: int = 256
    num_classes: int | None = None
    residual: bool = True

    @property
    def is_cifar(self) -> bool:
        """Whether it is one of the paper's CIFAR networks: three stages, 3x3 stem."""
        return len(self.blocks) == 3

    @property
    def depth(self) -> int:
        """Layers with weights: stem, three in a block, classifier."""
        return 3 * sum(self.blocks) + 2

    @property
    def name(self) -> str:
        """E.g. X-50-32x4d, R-50, X-29-8x64d (CIFAR)."""
        if (self.cardinality, self.width) == (1, 64):
            return f"R-{self.depth}"
        return f"X-{self.depth}-{self.cardinality}x{self.width}d"

    @property
    def input_size(self) -> int:
        """Pixels of the images that its classifier is trained on."""
        return 32 if self.is_cifar else 224

    def build(self, *, stride_in_1x1: bool = False, form: str = "c") -> nn.Module:
        """Build it in this package, without memory for its tensors (on the meta device)."""
        norm = "BN"
        with torch.device("meta"):
            if self.is_cifar:
                return CifarResNeXt(
                    self.depth,
                    self.cardinality,
                    self.width,
                    stem_out_channels=self.stem_channels,
                    res2_out_channels=self.res2_channels,
                    num_classes=self.num_classes or 10,
                    norm=norm,
                    form=form,
                    residual=self.residual,
                )
            return ResNeXt(
                self.depth,
                self.cardinality,
                self.width,
                stem_out_channels=self.stem_channels,
                res2_out_channels=self.res2_channels,
                norm=norm,
                stride_in_1x1=stride_in_1x1,
                form=form,
                residual=self.residual,
                num_classes=self.num_classes,
            )


def network_of(
    tensors: Mapping[str, Tensor], file: str, *, may_lack_shortcuts: bool = False
) -> Network:
    """Tell the network from tensors in Detectron2's names, form (c).

    Args:
        tensors: of a file.
        file: its name, for messages.
        may_lack_shortcuts: whether one without any is a network of Section 5.1's ablation; no
            public file is, so that there they have been lost.

    Raises:
        UserError: if they are no ResNet or ResNeXt with bottleneck blocks of a known depth.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_shapes(shapes, file)
    blocks = []
    for stage in range(2, 6):
        found = {int(m[1]) for n in shapes if (m := re.match(rf"res{stage}\.(\d+)\.", n))}
        if found != set(range(len(found))):
            absent = min(set(range(len(found))) - found)
            raise UserError(f"{file}: res{stage}.{absent} is missing: the file is incomplete")
        if found:
            blocks.append(len(found))
    cifar = shapes["stem.conv1.weight"][2:] == (3, 3)
    channels, width = shapes["res2.0.conv2.weight"][:2]
    classifier = shapes.get("linear.weight")
    network = Network(
        blocks=tuple(blocks),
        cardinality=channels // width,
        width=width,
        stem_channels=shapes["stem.conv1.weight"][0],
        res2_channels=shapes["res2.0.conv3.weight"][0],
        num_classes=classifier and classifier[0],
        residual=not may_lack_shortcuts or any(".shortcut." in name for name in shapes),
    )
    _check(network, cifar, file)
    return network


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], file: str) -> None:
    """Raise a UserError for shapes that tell no network."""
    for name in ("stem.conv1.weight", "res2.0.conv2.weight", "res2.0.conv3.weight"):
        if len(shapes.get(name, ())) != 4:
            why = "no such tensor" if name not in shapes else f"shape {shapes[name]}"
            raise UserError(
                f"{file} is no ResNeXt with bottleneck blocks: {name} ({why})"
                + ("" if "res2.0.conv1.weight" not in shapes else "; basic blocks of ResNet-18/34?")
            )
    for name, shape in shapes.items():
        if 0 in shape:
            raise UserError(f"{file}: {name} of shape {shape} is empty: the file is damaged")
    grouped = shapes["res2.0.conv2.weight"]
    if grouped[0] < grouped[1]:
        raise UserError(
            f"{file} is no ResNeXt: res2.0.conv2.weight of shape {grouped} has fewer channels than "
            "one of its groups takes"
        )
    classifier = shapes.get("linear.weight")
    if classifier is not None and len(classifier) != 2:
        raise UserError(
            f"{file}: linear.weight of shape {classifier} is no classifier, of (classes, channels)"
        )


def _check(network: Network, cifar: bool, file: str) -> None:
    """Raise a UserError for a network that this package does not build."""
    counts = ", ".join(map(str, network.blocks))
    if cifar:
        if len(network.blocks) != 3 or len(set(network.blocks)) != 1:
            raise UserError(
                f"{file}: a CIFAR network with {counts} blocks, not three equal stages: another "
                "network, or an incomplete file"
            )
        return
    if network.blocks != BLOCKS_PER_STAGE.get(network.depth):
        raise UserError(
            f"{file}: stages of {counts} blocks are no known depth ("
            + "; ".join(f"{d}: {', '.join(map(str, b))}" for d, b in BLOCKS_PER_STAGE.items())
            + "): another network, or an incomplete file"
        )


def check_complete(network: Network, tensors: Mapping[str, Tensor], file: str) -> None:
    """Compare names and shapes with the network's own.

    Raises:
        UserError: if a tensor is missing, left over, or of another shape, with up to five names.
    """
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in network.build().state_dict().items()
        if (network.num_classes or not name.startswith("linear."))
        and not name.endswith("num_batches_tracked")
    }
    given = {n: tuple(t.shape) for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    missing = [n for n in expected if n not in given]
    extra = [n for n in given if n not in expected]
    wrong = [n for n in expected if n in given and given[n] != expected[n]]
    problems = []
    if missing:
        what = "tensors"
        if all(".running_" in name for name in missing):
            what = "statistics of batch norms (has it group norm?)"
        problems.append(f"{len(missing)} {what} missing: {', '.join(missing[:5])}")
    if extra:
        problems.append(f"{len(extra)} with no place: {', '.join(extra[:5])}")
    if wrong:
        shown = [f"{n} {given[n]} for {expected[n]}" for n in wrong[:5]]
        problems.append(f"{len(wrong)} of another shape: {', '.join(shown)}")
    if problems:
        raise UserError(f"{file} does not make a {network.name}: {'; '.join(problems)}")
