"""Proof of a conversion: the source's network and ours, run on the same images.

The source's network is torchvision's or timm's class where its names are theirs, the Torch7 tree
itself for `.t7` files, and else a plain reading of the source's definition by its own names. None
of these shares code with the renaming rules.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ..errors import UserError
from ..modeling import form_of
from .network import Network
from .recipe import Preprocessing
from .t7_tree import run_t7

TOLERANCE = 1e-4  # of the largest feature

_PARTS_OF_A_DETECTOR = re.compile(
    r"^(backbone\.bottom_up\.|backbone\.(?=stem|res\d)|roi_heads\.(?=res5))"
)

# Images (N, 3, H, W), normalised as the source wants them, -> {"res2": features, ..., "linear"}
Features = Callable[[Tensor], dict[str, Tensor]]


def proof_image(network: Network, expected: Preprocessing) -> Tensor:
    """A random image, (1, 3, S, S) for the network's own size S, normalised as `expected` says."""
    generator = torch.Generator().manual_seed(0)
    size = network.input_size
    image = torch.rand(1, 3, size, size, generator=generator) * 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (expected.pixel_mean, expected.pixel_std))
    return (image - mean) / std


def largest_differences(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> dict[str, float]:
    """Compare the features of two networks.

    Args:
        theirs: of the source's network: (1, C, H, W) for res2..res5, and the logits, linear.
        ours: of this package's.

    Returns:
        For each, max |a - b| / max |a|.

    Raises:
        UserError: if the source's are not finite or all zero, or the outputs are not the same.
    """
    if theirs.keys() != ours.keys():
        raise UserError(
            f"proof: one network has {', '.join(theirs)}, the other has {', '.join(ours)}"
        )
    differences = {}
    for name, features in theirs.items():
        scale = float(features.abs().max())
        if not scale > 0 or not math.isfinite(scale):
            what = "all zero" if scale == 0 else "not finite"
            raise UserError(
                f"the features of the source's {name} are {what}: these are no trained weights"
            )
        difference = float((features.double() - ours[name].double()).abs().max()) / scale
        differences[name] = difference if math.isfinite(difference) else math.inf
    return differences


def our_features(
    network: Network, tensors: Mapping[str, Tensor], *, stride_in_1x1: bool, form: str = "c"
) -> Features:
    """This package's network with `tensors`, in Detectron2's names, as its weights."""
    net = network.build(stride_in_1x1=stride_in_1x1, form=form)
    _assign(net, tensors)

    @torch.no_grad()
    def features(images: Tensor) -> dict[str, Tensor]:
        x = net.stem(images)
        found = {}
        for name, stage in zip(net.stage_names, net.stages, strict=True):
            x = found[name] = stage(x)
        if network.num_classes:
            found["linear"] = net.linear(torch.flatten(net.avgpool(x), 1))
        return found

    return features


def source_features(
    source: str, content: object, network: Network, *, stride_in_1x1: bool
) -> tuple[Features, str]:
    """The source's own network.

    Args:
        source: a name of `resnext_det.weights.sources.SOURCES`.
        content: the source's tensors by their own names, prefixes of training programs taken off;
            for torch7 the root of the tree.
        network: what the tensors are.
        stride_in_1x1: where the source has its strides.

    Returns:
        The function, and what it is, for the report.
    """
    if source == "torch7":
        return lambda images: run_t7(content, images), "the Torch7 modules of the file"
    if source == "detectron2":
        content = {_PARTS_OF_A_DETECTOR.sub("", name): value for name, value in content.items()}
        if (form := form_of(content)) != "c":
            features = our_features(network, content, stride_in_1x1=stride_in_1x1, form=form)
            return features, f"this package's network in form ({form}) of Fig. 3"
    layers = {"cadene": _cadene, "caffe2": _caffe2, "detectron2": _detectron2}
    if source in layers:
        features = _plain_features(content, layers[source], network, stride_in_1x1=stride_in_1x1)
        return features, f"a plain reading of {source}'s names"
    if source == "openmmlab":
        content = {
            name.removeprefix("backbone.").replace("head.fc.", "fc."): tensor
            for name, tensor in content.items()
        }
        if stride_in_1x1:  # its style "caffe", which torchvision's class lacks
            features = _plain_features(content, _torchvision, network, stride_in_1x1=True)
            return features, f"a plain reading of {source}'s names"
    if stride_in_1x1:
        raise UserError(
            f"{source}'s networks have their strides in the 3x3 layers, this {network.name} has "
            "them in the 1x1 layers"
        )
    return _library_features(source, content, network)


def _library_features(
    source: str, content: Mapping[str, Tensor], network: Network
) -> tuple[Features, str]:
    if (network.stem_channels, network.res2_channels) != (64, 256):
        raise UserError(
            f"{source} has no ResNeXt with {network.stem_channels} channels in the stem and "
            f"{network.res2_channels} in res2"
        )
    num_classes = network.num_classes or 0  # the library needs at least one
    with torch.device("meta"):
        net, title = _build_in_library(source, network, num_classes or 1)
    if not num_classes:
        net.fc = nn.Identity()
    _assign(net, content)

    @torch.no_grad()
    def features(images: Tensor) -> dict[str, Tensor]:
        x = net.maxpool(F.relu(net.bn1(net.conv1(images))))
        found = {}
        for index in range(4):
            x = found[f"res{index + 2}"] = getattr(net, f"layer{index + 1}")(x)
        if num_classes:
            found["linear"] = net.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return found

    return features, title


def _build_in_library(source: str, network: Network, num_classes: int) -> tuple[nn.Module, str]:
    groups, width = network.cardinality, network.width
    if source == "timm":
        try:
            import timm
        except ImportError:  # the names are torchvision's, and so is the network
            pass
        else:
            net = timm.models.resnet.ResNet(
                timm.models.resnet.Bottleneck,
                network.blocks,
                num_classes=num_classes,
                cardinality=groups,
                base_width=width,
            )
            return net, f"timm {timm.__version__}"
    net = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck,
        list(network.blocks),
        num_classes=num_classes,
        groups=groups,
        width_per_group=width,
    )
    return net, f"torchvision {torchvision.__version__}"


def _assign(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make `tensors` the weights of a network on the meta device, without a copy of float32."""
    wanted = net.state_dict()
    tensors = {
        name: tensor if tensor.dtype == torch.long else tensor.float()
        for name, tensor in tensors.items()
        if name in wanted
    }
    net.load_state_dict(tensors, strict=True, assign=True)
    net.eval()


# A layer's place ("stem", "", "") or (stage, block, one of conv1, conv2, conv3, shortcut)
# -> the name of its convolution's weight, and of its norm up to the last part
_Layers = Callable[[str, int, str], tuple[str, str]]


def _cadene(stage: str, block: int, layer: str) -> tuple[str, str]:
    """pretrainedmodels/models/resnext_features: nested Sequentials and LambdaMaps."""
    if stage == "stem":
        return "features.0.weight", "features.1."
    path = f"features.{int(stage[3:]) + 2}.{block}.0."
    conv, norm = {
        "conv1": ("0.0.0", "0.0.1"),
        "conv2": ("0.0.3", "0.0.4"),
        "conv3": ("0.1", "0.2"),
        "shortcut": ("1.0", "1.1"),
    }[layer]
    return f"{path}{conv}.weight", f"{path}{norm}."


def _caffe2(stage: str, block: int, layer: str) -> tuple[str, str]:
    """detectron/modeling/ResNet.py: add_stage, bottleneck_transformation, basic_bn_shortcut."""
    if stage == "stem":
        return "conv1_w", "res_conv1_bn_"
    suffix = dict(conv1="2a", conv2="2b", conv3="2c", shortcut="1")[layer]
    blob = f"{stage}_{block}_branch{suffix}"
    return f"{blob}_w", f"{blob}_bn_"


def _torchvision(stage: str, block: int, layer: str) -> tuple[str, str]:
    """mmpretrain/models/backbones/resnet.py: Bottleneck, in torchvision's names."""
    if stage == "stem":
        return "conv1.weight", "bn1."
    path = f"layer{int(stage[3:]) - 1}.{block}"
    if layer == "shortcut":
        return f"{path}.downsample.0.weight", f"{path}.downsample.1."
    return f"{path}.{layer}.weight", f"{path}.bn{layer[4:]}."


def _detectron2(stage: str, block: int, layer: str) -> tuple[str, str]:
    """detectron2/modeling/backbone/resnet.py: BasicStem, BottleneckBlock."""
    path = "stem.conv1" if stage == "stem" else f"{stage}.{block}.{layer}"
    return f"{path}.weight", f"{path}.norm."


def _plain_features(
    tensors: Mapping[str, Tensor], layers: _Layers, network: Network, *, stride_in_1x1: bool
) -> Features:
    """Table 1 of the paper, written out, on tensors by the source's own names."""

    def layer(x: Tensor, place: tuple[str, int, str], stride: int = 1) -> Tensor:
        conv, norm = layers(*place)
        weight = tensors[conv].float()
        padding = weight.shape[-1] // 2
        groups = x.shape[1] // weight.shape[1]
        return _norm(F.conv2d(x, weight, None, stride, padding, 1, groups), tensors, norm)

    @torch.no_grad()
    def features(images: Tensor) -> dict[str, Tensor]:
        x = F.relu(layer(images, ("stem", 0, ""), 1 if network.is_cifar else 2))
        if not network.is_cifar:
            x = F.max_pool2d(x, 3, 2, 1)
        found = {}
        for index, blocks in enumerate(network.blocks):
            stage = f"res{index + 2}"
            for block in range(blocks):
                stride = 2 if index > 0 and block == 0 else 1
                first, second = (stride, 1) if stride_in_1x1 else (1, stride)
                y = F.relu(layer(x, (stage, block, "conv1"), first))
                y = F.relu(layer(y, (stage, block, "conv2"), second))
                y = layer(y, (stage, block, "conv3"))
                if layers(stage, block, "shortcut")[0] in tensors:
                    x = layer(x, (stage, block, "shortcut"), stride)
                x = F.relu(x + y if network.residual else y)
            found[stage] = x
        if network.num_classes:
            found["linear"] = _classify(x.mean((2, 3)), tensors)
        return found

    return features


def _norm(x: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    def get(*parts: str) -> Tensor | None:
        return next((tensors[name + p].float() for p in parts if name + p in tensors), None)

    scale, shift = get("weight", "gamma", "s"), get("bias", "beta", "b")
    mean, variance = get("running_mean", "rm"), get("running_var", "riv")
    if mean is None:  # merged: a scale and a shift per channel
        return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    return F.batch_norm(x, mean, variance, scale, shift, eps=1e-5)


def _classify(x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    names: Sequence[str] = ("linear.", "last_linear.", "pred_", "fc1000_", "stem.fc.", "fc.")
    for name in names:
        weight, bias = ("weight", "bias") if name.endswith(".") else ("w", "b")
        if name + weight in tensors:
            return F.linear(x, tensors[name + weight].float(), tensors[name + bias].float())
    raise UserError("proof: no classifier of a known name in the source")
