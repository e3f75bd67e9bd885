"""Weight files of public sources, of random weights, with the library's own network beside them.

Nothing here uses this package but `t7_files`, which takes the number of blocks from it. Networks of
torchvision's, timm's, pretrainedmodels' and mmpretrain's classes write their own state dicts; files
in a format without a library (Torch7, Caffe2) are written from a torchvision network.
"""

import argparse
import contextlib
import copy
import io
import pickle
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from tests.helpers import REPO, randomise
from tests.weights.t7_files import Builder, Module, Sizes, flatten_parameters, modules_of, write_t7

# What images the publishers document: order, mean and std in it, of pixels 0..255
IMAGENET = ("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
IMAGENET_BGR = ("BGR", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
DETECTRON = ("BGR", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0))
MSRA = ("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
EPS = 1e-5  # of the batch norms of all of them

Features = Callable[[Tensor], dict[str, Tensor]]
Expects = tuple[str, tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class PublicFile:
    """What a file holds, as its publisher sees it.

    Attributes:
        original: the network's tensors by torchvision's names, for RGB images.
        features: RGB images of 0..255, (N, 3, H, W) -> res2..res5 and, with a classifier, linear.
        count: of tensors in the file.
        dropped: how many of them belong to no ResNeXt.
        variant: of the network.
        expects: of images.
        stride_in_1x1: whether a stage's stride is in its first 1x1 layer.
        wrapper: keys that lead to the tensors.
        prefix: on all of their names.
    """

    original: dict[str, Tensor]
    features: Features
    count: int
    dropped: int = 0
    variant: str = "X-26-8x4d"
    expects: Expects = IMAGENET
    stride_in_1x1: bool = False
    wrapper: str = ""
    prefix: str = ""


def random_network(
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    groups: int = 8,
    width: int = 4,
    *,
    block: type = Bottleneck,
    num_classes: int = 10,
    stride_in_1x1: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A torchvision network whose every tensor is random, its counters of batches too."""
    net = torchvision.models.ResNet(
        block, list(blocks), num_classes=num_classes, groups=groups, width_per_group=width
    )
    if stride_in_1x1:
        for stage in (net.layer2, net.layer3, net.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return with_counters(randomise(net, seed)).eval()


def with_counters(net: nn.Module) -> nn.Module:
    """Make every norm's count of batches another number."""
    for number, (name, tensor) in enumerate(net.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            tensor.fill_(1000 + number)
    return net


def normalise(images: Tensor, expects: Expects = IMAGENET) -> Tensor:
    """RGB images of 0..255 as the publisher normalises them, still RGB."""
    order, mean, std = expects
    if order == "BGR":
        mean, std = mean[::-1], std[::-1]
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def features_of(
    net: nn.Module, expects: Expects = IMAGENET, *, classifier: bool = True
) -> Features:
    """The features of a torchvision or timm network for RGB images."""

    @torch.no_grad()
    def features(images: Tensor) -> dict[str, Tensor]:
        act = getattr(net, "act1", None) or net.relu
        x = net.maxpool(act(net.bn1(net.conv1(normalise(images, expects)))))
        found = {}
        for index in range(1, 5):
            x = found[f"res{index + 1}"] = getattr(net, f"layer{index}")(x)
        if classifier:
            found["linear"] = net.fc(x.mean((2, 3)))
        return found

    return features


def tensors_of(net: nn.Module, **wanted: bool) -> dict[str, Tensor]:
    """A copy of the state dict; `fc=False` and `counters=False` leave parts out."""
    return {
        name: tensor.clone()
        for name, tensor in net.state_dict().items()
        if (wanted.get("fc", True) or not name.startswith("fc."))
        and (wanted.get("counters", True) or not name.endswith("num_batches_tracked"))
    }


# torchvision's names, in torch's and safetensors' files


def torchvision_file(path: Path) -> PublicFile:
    net = random_network()
    torch.save(net.state_dict(), path)
    return PublicFile(tensors_of(net), features_of(net), len(net.state_dict()))


def training_checkpoint(path: Path) -> PublicFile:
    """As torchvision's and PyTorch's ImageNet example save: DataParallel, an optimizer beside."""
    net = random_network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    content = {
        "epoch": 90,
        "arch": "resnext26",
        "state_dict": nn.DataParallel(net).state_dict(),
        "best_acc1": 77.6,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, path)
    names = len(net.state_dict())
    return PublicFile(
        tensors_of(net), features_of(net), names, wrapper="state_dict", prefix="module."
    )


def legacy_file(path: Path) -> PublicFile:
    """torch's format before 1.6 and names of before 0.4.1, as the SSL and SWSL files have them."""
    net = random_network()
    tensors = tensors_of(net, counters=False)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return PublicFile(tensors, features_of(net), len(tensors))


def half_file(path: Path) -> PublicFile:
    net = random_network().half()
    torch.save(net.state_dict(), path)
    original = tensors_of(net)
    return PublicFile(original, features_of(net.float()), len(original))


def third_party_file(path: Path) -> PublicFile:
    """OpenMMLab's `third_party` files: torchvision's names, no classifier."""
    net = random_network()
    tensors = tensors_of(net, fc=False)
    torch.save({"state_dict": tensors, "meta": {}}, path)
    features = features_of(net, classifier=False)
    return PublicFile(tensors, features, len(tensors), wrapper="state_dict")


def timm_network(seed: int = 0) -> nn.Module:
    net = timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, (2, 2, 2, 2), num_classes=10, cardinality=8, base_width=4
    )
    return with_counters(randomise(net, seed)).eval()


def timm_file(path: Path) -> PublicFile:
    net = timm_network()
    safetensors.torch.save_file(net.state_dict(), path, {"format": "pt"})
    return PublicFile(tensors_of(net), features_of(net), len(net.state_dict()))


def timm_checkpoint(path: Path) -> PublicFile:
    """As timm's train.py saves: the network as trained, and the average that it evaluates."""
    trained, average = timm_network(1), timm_network(2)
    content = {
        "epoch": 299,
        "arch": "resnext50_32x4d",
        "state_dict": trained.state_dict(),
        "optimizer": {"state": {}, "param_groups": []},
        "version": 2,
        "args": argparse.Namespace(model="resnext50_32x4d", lr=0.5),
        "state_dict_ema": average.state_dict(),
        "metric": 79.5,
    }
    torch.save(content, path)
    names = len(average.state_dict())
    return PublicFile(tensors_of(average), features_of(average), names, wrapper="state_dict_ema")


# MoCo: two encoders in one file, the classifier a projection


def moco_tensors(net: nn.Module, *, mlp: bool) -> dict[str, Tensor]:
    """`state_dict` of moco/builder.py in DistributedDataParallel, the queue as in v1 and v2."""
    body = tensors_of(net, fc=False)
    sizes = {"fc.0": (64, 2048), "fc.2": (16, 64)} if mlp else {"fc": (16, 2048)}
    for layer, shape in sizes.items():
        body |= {f"{layer}.weight": torch.rand(shape), f"{layer}.bias": torch.rand(shape[0])}
    return {
        **{f"module.encoder_q.{name}": tensor for name, tensor in body.items()},
        **{f"module.encoder_k.{name}": tensor + 1 for name, tensor in body.items()},
        "module.queue": torch.rand(16, 64),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }


def moco_file(path: Path) -> PublicFile:
    """MoCo v1, whose projection is the one layer `fc`."""
    net = random_network()
    tensors = moco_tensors(net, mlp=False)
    net.fc = nn.Linear(2048, 16)
    named = {k.removeprefix("module.encoder_q."): v for k, v in tensors.items()}
    net.load_state_dict({name: named[name] for name in net.state_dict()})
    torch.save({"epoch": 200, "arch": "resnext50", "state_dict": tensors}, path)
    return PublicFile(
        tensors_of(net),
        features_of(net),
        len(tensors),
        len(net.state_dict()) + 2,
        wrapper="state_dict",
        prefix="module.encoder_q.",
    )


# Libraries at their real sizes


def cadene_file(path: Path) -> PublicFile:
    library = pytest.importorskip(
        "pretrainedmodels", reason="Cadene's networks are in the package pretrainedmodels"
    )
    net = library.models.resnext.resnext101_32x4d(pretrained=None)
    net = copy.deepcopy(net)  # the package has one such network for all of its users
    net = with_counters(randomise(net)).eval()
    torch.save(net.state_dict(), path)

    @torch.no_grad()
    def features(images: Tensor) -> dict[str, Tensor]:
        x = net.features[:4](normalise(images))
        found = {}
        for index in range(4):
            x = found[f"res{index + 2}"] = net.features[index + 4](x)
        found["linear"] = net.last_linear(x.mean((2, 3)))
        return found

    # the layers are registered in torchvision's order
    with torch.device("meta"):
        names = torchvision.models.ResNet(
            Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4
        ).state_dict()
    original = dict(zip(names, tensors_of(net).values(), strict=True))
    return PublicFile(original, features, len(original), variant="X-101-32x4d")


def mmpretrain_network() -> nn.Module:
    models = pytest.importorskip(
        "mmpretrain.models", reason="OpenMMLab's classifiers are in the package mmpretrain"
    )
    net = models.ImageClassifier(
        backbone=dict(type="ResNeXt", depth=50, out_indices=(0, 1, 2, 3)),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=1000, in_channels=2048),
    )
    return with_counters(randomise(net)).eval()


def mmpretrain_features(net: nn.Module, *, classifier: bool) -> Features:
    @torch.no_grad()
    def features(images: Tensor) -> dict[str, Tensor]:
        maps = net.backbone(normalise(images))
        found = {f"res{index}": x for index, x in enumerate(maps, 2)}
        if classifier:
            found["linear"] = net.head.fc(net.neck(maps)[-1])
        return found

    return features


def mmpretrain_file(path: Path) -> PublicFile:
    net = mmpretrain_network()
    meta = {"mmpretrain_version": "1.2.0", "dataset_meta": {"classes": ["tench", "goldfish"]}}
    torch.save({"meta": meta, "state_dict": net.state_dict()}, path)
    original = {
        name.removeprefix("backbone.").removeprefix("head."): tensor
        for name, tensor in tensors_of(net).items()
    }
    features = mmpretrain_features(net, classifier=True)
    return PublicFile(original, features, len(original), variant="X-50-32x4d", wrapper="state_dict")


def mmdetection_file(path: Path) -> PublicFile:
    """A trained Faster R-CNN of MMDetection 3: backbone, neck and heads."""
    net = mmpretrain_network()
    body = {k: v for k, v in tensors_of(net).items() if k.startswith("backbone.")}
    shapes = {
        "neck.lateral_convs.0.conv.weight": (8, 256, 1, 1),
        "neck.fpn_convs.0.conv.bias": (8,),
        "rpn_head.rpn_conv.weight": (8, 8, 3, 3),
        "rpn_head.rpn_cls.bias": (3,),
        "roi_head.bbox_head.shared_fcs.0.weight": (4, 8),
        "roi_head.bbox_head.fc_cls.weight": (81, 4),
        "roi_head.mask_head.conv_logits.bias": (80,),
    }
    heads = {name: torch.rand(shape) for name, shape in shapes.items()}
    torch.save({"meta": {"epoch": 12}, "state_dict": {**body, **heads}}, path)
    return PublicFile(
        {name.removeprefix("backbone."): tensor for name, tensor in body.items()},
        mmpretrain_features(net, classifier=False),
        len(body) + len(heads),
        len(heads),
        variant="X-50-32x4d",
        wrapper="state_dict",
    )


def openmmlab_backbone_file(path: Path) -> PublicFile:
    """The backbone alone, cut out of a checkpoint with its prefix; small."""
    net = random_network()
    tensors = tensors_of(net, fc=False)
    content = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"meta": {}, "state_dict": content}, path)
    features = features_of(net, classifier=False)
    return PublicFile(tensors, features, len(tensors), wrapper="state_dict")


# Caffe2's names


def caffe2_names(net: nn.Module) -> dict[str, tuple[str, str]]:
    """torchvision's layer, e.g. layer1.0.conv2 -> (its norm, Caffe2's blob res2_0_branch2b)."""
    names = {"conv1": ("bn1", "conv1")}
    for stage in range(1, 5):
        for index, block in enumerate(getattr(net, f"layer{stage}")):
            path, blob = f"layer{stage}.{index}", f"res{stage + 1}_{index}_branch"
            for number, suffix in enumerate(("2a", "2b", "2c"), 1):
                names[f"{path}.conv{number}"] = (f"{path}.bn{number}", blob + suffix)
            if block.downsample is not None:
                names[f"{path}.downsample.0"] = (f"{path}.downsample.1", f"{blob}1")
    return names


class Python2Pickler(pickle._Pickler):
    """Writes str and bytes as Python 2 wrote its one str, and NumPy's modules as they were."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_py2_string(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        if len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    def save_global(self, obj: object, name: str | None = None) -> None:
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = save_py2_string
    dispatch[type] = dispatch[type(save_global)] = save_global


def dump(content: object, path: Path, *, python2: bool = False) -> None:
    """Pickle with protocol 2."""
    with path.open("wb") as file:
        (Python2Pickler if python2 else pickle.Pickler)(file, 2).dump(content)


def detectron_blobs(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Blobs of Detectron, whose norms are a scale and a shift, and the network with such norms."""
    tensors, blobs = tensors_of(net), {}
    merged = {name: tensor for name, tensor in tensors.items() if name.startswith("fc.")}
    for conv, (norm, blob) in caffe2_names(net).items():
        scale = tensors[f"{norm}.weight"] / (tensors[f"{norm}.running_var"] + EPS).sqrt()
        shift = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale
        weight = tensors[f"{conv}.weight"]
        merged |= {
            f"{conv}.weight": weight,
            f"{norm}.weight": scale,
            f"{norm}.bias": shift,
            f"{norm}.running_mean": torch.zeros_like(scale),
            f"{norm}.running_var": torch.full_like(scale, 1 - EPS),
        }
        bn = "res_conv1_bn" if blob == "conv1" else f"{blob}_bn"
        blobs |= {f"{blob}_w": weight, f"{bn}_s": scale, f"{bn}_b": shift}
    blobs["conv1_w"] = blobs["conv1_w"].flip(1)  # BGR
    blobs |= {"pred_w": tensors["fc.weight"], "pred_b": tensors["fc.bias"]}
    return blobs, merged


def arrays(tensors: Mapping[str, Tensor]) -> dict:
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


def for_pixels(net: nn.Module) -> nn.Module:
    """Fold a std of 60 into the first layer: the network then takes pixels less their mean."""
    with torch.no_grad():
        net.conv1.weight /= 60
    return net


def detectron_resnext_file(path: Path) -> PublicFile:
    """The blobs alone, from Python 2."""
    net = for_pixels(random_network())
    blobs, merged = detectron_blobs(net)
    dump(arrays(blobs), path, python2=True)
    return PublicFile(merged, features_of(net, DETECTRON), len(blobs), expects=DETECTRON)


def detectron_resnet_file(path: Path) -> PublicFile:
    """A checkpoint with momenta and a ResNet-50 whose strides are in the 1x1 layers (MSRA)."""
    net = for_pixels(random_network((3, 4, 6, 3), 1, 64, num_classes=1000, stride_in_1x1=True))
    blobs, merged = detectron_blobs(net)
    momenta = {f"{name}_momentum": torch.zeros(1) for name in ("conv1_w", "res2_0_branch2a_w")}
    rate = {"lr": torch.tensor([0.02])}
    dump({"blobs": arrays({**blobs, **momenta, **rate})}, path)
    return PublicFile(
        merged,
        features_of(net, DETECTRON),
        len(blobs) + 3,
        3,
        variant="R-50",
        expects=DETECTRON,
        stride_in_1x1=True,
        wrapper="blobs",
    )


def detectron2_resnext_file(path: Path) -> PublicFile:
    """As Detectron2's ImageNetPretrained/FAIR/X-101-32x8d.pkl."""
    return _detectron2_file(path, random_network(), expects=IMAGENET_BGR)


def detectron2_resnet_file(path: Path) -> PublicFile:
    """As Detectron2's ImageNetPretrained/MSRA/R-50.pkl."""
    net = for_pixels(random_network(groups=1, width=64, stride_in_1x1=True))
    return _detectron2_file(path, net, expects=MSRA, variant="R-26", stride_in_1x1=True)


def _detectron2_file(path: Path, net: nn.Module, expects: Expects, **facts: object) -> PublicFile:
    """Caffe2's names with the four arrays of each norm."""
    tensors, blobs = tensors_of(net, counters=False), {}
    fields = dict(
        weight="gamma", bias="beta", running_mean="running_mean", running_var="running_var"
    )
    for conv, (norm, blob) in caffe2_names(net).items():
        bn = "res_conv1_bn" if blob == "conv1" else f"{blob}_bn"
        blobs[f"{blob}_w"] = tensors[f"{conv}.weight"]
        blobs |= {f"{bn}_{new}": tensors[f"{norm}.{old}"] for old, new in fields.items()}
    blobs["conv1_w"] = blobs["conv1_w"].flip(1)
    blobs |= {"fc1000_w": tensors["fc.weight"], "fc1000_b": tensors["fc.bias"]}
    dump({"model": arrays(blobs), "__author__": "Caffe2", "matching_heuristics": True}, path)
    features = features_of(net, expects)
    return PublicFile(tensors, features, len(blobs), expects=expects, wrapper="model", **facts)


def detectron2_torchvision_file(path: Path) -> PublicFile:
    """As Detectron2's tools/convert-torchvision-to-d2.py writes."""
    net = random_network()
    renamed = {}
    for name, tensor in tensors_of(net).items():
        new = name if "layer" in name else f"stem.{name}"
        for stage in (1, 2, 3, 4):
            new = new.replace(f"layer{stage}", f"res{stage + 1}")
        for layer in (1, 2, 3):
            new = new.replace(f"bn{layer}", f"conv{layer}.norm")
        new = new.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[new] = tensor.numpy()
    dump({"model": renamed, "__author__": "torchvision", "matching_heuristics": True}, path)
    return PublicFile(tensors_of(net), features_of(net), len(renamed), wrapper="model")


# Torch7


def t7_tree(
    net: nn.Module, *, form: str = "c", nested: bool = True, stride_in_1x1: bool = False
) -> Module:
    """models/resnext.lua's modules with the tensors of a torchvision network of 8x4d."""
    blocks = [len(getattr(net, f"layer{stage}")) for stage in range(1, 5)]
    tree = Builder().network(blocks, 8, 4, form, nested, net.fc.out_features)
    top = tree.fields["modules"]
    _fill(top[0], net.conv1)
    _fill(top[1], net.bn1)
    for stage in range(1, 5):
        for block, node in zip(
            getattr(net, f"layer{stage}"), top[3 + stage].fields["modules"], strict=True
        ):
            _fill_block(block, node, stride_in_1x1=stride_in_1x1 and stage > 1)
    _fill(top[10], net.fc)
    flatten_parameters(tree)
    return tree


def _fill(module: Module, layer: nn.Module, part: slice = slice(None)) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(layer, name, None) is not None:
            tensor = getattr(layer, name).detach()[part].clone()
            assert module.fields[name].shape == tensor.shape
            module.fields[name] = tensor


def _fill_block(block: nn.Module, node: Module, *, stride_in_1x1: bool) -> None:
    branch, shortcut = node.fields["modules"][0].fields["modules"]
    layers = [m for _, m in modules_of(branch) if "weight" in m.fields]
    if block.downsample is not None:
        for module, layer in zip(shortcut.fields["modules"], block.downsample, strict=True):
            _fill(module, layer)
    if len(layers) == 6:
        order = (block.conv1, block.bn1, block.conv2, block.bn2, block.conv3, block.bn3)
        for module, layer in zip(layers, order, strict=True):
            _fill(module, layer)
        if stride_in_1x1 and block.downsample is not None:
            for module, stride in ((layers[0], 2), (layers[2], 1)):
                module.fields |= {"dW": stride, "dH": stride}
        return
    width = block.conv2.weight.shape[1]
    for path in range(8):
        part = slice(path * width, (path + 1) * width)
        order = (block.conv1, block.bn1, block.conv2, block.bn2)
        for module, layer in zip(layers[4 * path : 4 * path + 4], order, strict=True):
            _fill(module, layer, part)
    _fill(layers[-2], block.conv3)
    _fill(layers[-1], block.bn3)


def t7_file(path: Path, *, stride_in_1x1: bool = False, **layout: object) -> PublicFile:
    net = random_network(stride_in_1x1=stride_in_1x1)
    tree = t7_tree(net, stride_in_1x1=stride_in_1x1, **layout)
    write_t7(path, tree)
    values = [v for _, module in modules_of(tree) for v in module.fields.values()]
    count = sum(isinstance(value, Tensor | Sizes) for value in values)
    used = sum(
        field in module.fields
        for _, module in modules_of(tree)
        for field in ("weight", "bias", "running_mean", "running_var")
    )
    return PublicFile(
        tensors_of(net, counters=False),
        features_of(net),
        count,
        count - used,
        stride_in_1x1=stride_in_1x1,
    )


def flat_t7_file(path: Path) -> PublicFile:
    return t7_file(path, nested=False)


def form_b_t7_file(path: Path) -> PublicFile:
    return t7_file(path, form="b")


def t7_file_with_stride_in_1x1(path: Path) -> PublicFile:
    return t7_file(path, stride_in_1x1=True)


@dataclass(frozen=True)
class Kind:
    """A layout of files: its name in the package, the files' suffix, and a writer of one."""

    source: str
    suffix: str
    write: Callable[[Path], PublicFile]


KINDS = {
    "torchvision": Kind("torchvision", ".pth", torchvision_file),
    "training checkpoint": Kind("torchvision", ".pth.tar", training_checkpoint),
    "legacy torch format": Kind("torchvision", ".pth", legacy_file),
    "half precision": Kind("torchvision", ".pth", half_file),
    "third_party": Kind("torchvision", ".pth", third_party_file),
    "MoCo": Kind("torchvision", ".pth.tar", moco_file),
    "timm": Kind("timm", ".safetensors", timm_file),
    "timm checkpoint": Kind("torchvision", ".pth.tar", timm_checkpoint),
    "cadene": Kind("cadene", ".pth", cadene_file),
    "mmpretrain": Kind("openmmlab", ".pth", mmpretrain_file),
    "mmdetection": Kind("openmmlab", ".pth", mmdetection_file),
    "openmmlab backbone": Kind("openmmlab", ".pth", openmmlab_backbone_file),
    "detectron ResNeXt": Kind("caffe2", ".pkl", detectron_resnext_file),
    "detectron ResNet": Kind("caffe2", ".pkl", detectron_resnet_file),
    "detectron2 ResNeXt": Kind("caffe2", ".pkl", detectron2_resnext_file),
    "detectron2 ResNet": Kind("caffe2", ".pkl", detectron2_resnet_file),
    "detectron2 from torchvision": Kind("detectron2", ".pkl", detectron2_torchvision_file),
    "t7": Kind("torch7", ".t7", t7_file),
    "flat t7": Kind("torch7", ".t7", flat_t7_file),
    "t7 of form b": Kind("torch7", ".t7", form_b_t7_file),
    "t7 with strides in 1x1": Kind("torch7", ".t7", t7_file_with_stride_in_1x1),
}
LARGE = ("cadene", "mmpretrain", "mmdetection", "detectron ResNet")
SMALL = [name for name in KINDS if name not in LARGE]
# Those that differ from others only in how the file is read
SAME_RULES = ("training checkpoint", "legacy torch format", "MoCo", "timm checkpoint", "flat t7")


def basic_block_network() -> nn.Module:
    """ResNet-18's blocks."""
    return random_network(groups=1, width=64, block=BasicBlock)


def write_with_header(path: Path, low_byte: int) -> None:
    """Write safetensors whose length of the header, its first 8 bytes, starts with `low_byte`."""
    for padding in range(0, 256, 8):
        metadata = {"format": "pt", "padding": "x" * padding}
        safetensors.torch.save_file({"conv1.weight": torch.zeros(1)}, path, metadata)
        with path.open("rb") as file:
            if file.read(1)[0] == low_byte:
                return
    raise AssertionError(f"no header's length starts with {low_byte}")


TOOL = REPO / "tools/convert_weights.py"


@dataclass(frozen=True)
class Done:
    """What the tool said and how it ended."""

    status: int
    out: str
    err: str


def run_converter(*words: object) -> Done:
    """`python tools/convert_weights.py WORDS` within this process, which saves its imports."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = [str(TOOL), *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            err.write(end.code + "\n")
        status = 1 if isinstance(end.code, str) else end.code or 0
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)
    return Done(status, out.getvalue(), err.getvalue())
