"""Public ImageNet weights that can be converted to Detectron2's names: facts and look-up only.

Nothing here downloads (see download.py) or reads a file (see convert.py). Tests compare the facts
with the records of torchvision, timm, pretrainedmodels, MMEngine, MMPretrain and Detectron2.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tabulate import tabulate

from ..config import suggest
from ..errors import UserError
from .recipe import DETECTRON, IMAGENET, Preprocessing


@dataclass(frozen=True)
class PublishedWeights:
    """One public weight file and what its publisher says of it.

    Attributes:
        name: `<publisher>/<variant>`, with `.<tag>` where a publisher has several of one variant,
            e.g. "timm/X-50-32x4d.a1h".
        url: where the publisher keeps it.
        source: layout of its tensors, as the converter calls it: "torch7", "torchvision", "timm",
            "cadene", "openmmlab", "caffe2" or "detectron2".
        licence: of the weights, as an SPDX identifier.
        top1: published ImageNet-1K accuracy in percent, of a single crop of 224 x 224 pixels (the
            READMEs of ssl, swsl and wsl state no size); None where the publisher states none.
        top5: likewise.
        sha256_prefix: first eight hexadecimal digits of the file's sha256, which publishers put at
            the end of its name; empty where none is published.
        md5: of the file, 32 hexadecimal digits; empty where none is published.
        preprocessing: what the network expects of an image.
        stride_in_1x1: whether a stage's stride is in its first 1x1 layer, not in the 3x3 layer.
    """

    name: str
    url: str
    source: str
    licence: str
    top1: float | None = None
    top5: float | None = None
    sha256_prefix: str = ""
    md5: str = ""
    preprocessing: Preprocessing = IMAGENET
    stride_in_1x1: bool = False

    @property
    def publisher(self) -> str:
        """The part of the name before the slash."""
        return self.name.split("/")[0]

    @property
    def variant(self) -> str:
        """E.g. "X-50-32x4d"; `Variant.parse` reads it."""
        return self.name.split("/")[1].split(".")[0]

    @property
    def file_name(self) -> str:
        """The publisher's name of the file. Two publishers may use one name for two files."""
        return self.url.rsplit("/", 1)[1]


# Variant and tag, end of the url, top-1 and top-5; where one is published, md5.
_Row = tuple[str, str, float | None, float | None] | tuple[str, str, None, None, str]


def _published(
    publisher: str,
    source: str,
    licence: str,
    url_start: str,
    rows: Iterable[_Row],
    preprocessing: Preprocessing = IMAGENET,
) -> Iterator[PublishedWeights]:
    for variant, url_end, top1, top5, *md5 in rows:
        digits = re.search(r"-([0-9a-f]{8})\.pth$", url_end)
        yield PublishedWeights(
            name=f"{publisher}/{variant}",
            url=url_start + url_end,
            source=source,
            licence=licence,
            top1=top1,
            top5=top5,
            sha256_prefix=digits[1] if digits else "",
            md5="".join(md5),
            preprocessing=preprocessing,
        )


_PYTORCH = "https://download.pytorch.org/models/"
_FACEBOOK = "https://dl.fbaipublicfiles.com/"
_SEMI = f"{_FACEBOOK}semiweaksupervision/model_files/semi_"
_OPENMMLAB = "https://download.openmmlab.com/"
_TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/"
_GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/"
_FB_X101_64X4D_MD5 = "aa14062280226e48f569ef1c7212e7c7"

_ENTRIES = [
    # README of facebookresearch/ResNeXt; top-5 from the paper, Tables 3 and 4
    *_published(
        "authors",
        "torch7",
        "CC-BY-NC-4.0",
        f"{_FACEBOOK}resnext/imagenet_models/",
        [
            ("X-50-32x4d", "resnext_50_32x4d.t7", 77.8, None),
            ("X-101-32x4d", "resnext_101_32x4d.t7", 78.8, 94.4),
            ("X-101-64x4d", "resnext_101_64x4d.t7", 79.6, 94.7),
        ],
    ),
    # The authors' files, ported, hence their licence. The server has no https.
    *_published(
        "cadene",
        "cadene",
        "CC-BY-NC-4.0",
        "http://data.lip6.fr/cadene/pretrainedmodels/",
        [
            ("X-101-32x4d", "resnext101_32x4d-29e315fa.pth", 78.188, 93.886),
            ("X-101-64x4d", "resnext101_64x4d-e77a0586.pth", 78.956, 94.252),
        ],
    ),
    # The authors' files, ported ("simply converted from the official release", MMDetection pull
    # request 192), hence their licence
    *_published(
        "openmmlab",
        "torchvision",
        "CC-BY-NC-4.0",
        f"{_OPENMMLAB}pretrain/third_party/",
        [
            ("X-50-32x4d", "resnext50-32x4d-0ab1a123.pth", None, None),
            ("X-101-32x4d", "resnext101_32x4d-a5af3160.pth", None, None),
            ("X-101-64x4d", "resnext101_64x4d-ee2c6f71.pth", None, None),
        ],
    ),
    # Detectron2's X-101-32x8d.pkl, ported, hence its licence and its channel order
    *_published(
        "openmmlab",
        "torchvision",
        "CC-BY-SA-3.0",
        f"{_OPENMMLAB}pretrain/third_party/",
        [("X-101-32x8d.detectron2", "resnext101_32x8d-1516f1aa.pth", None, None)],
        IMAGENET.reordered("BGR"),
    ),
    # MMPretrain's own. The licence is the code's; none is stated for the weights.
    *_published(
        "mmcls",
        "openmmlab",
        "Apache-2.0",
        f"{_OPENMMLAB}mmclassification/v0/resnext/",
        [
            ("X-50-32x4d", "resnext50_32x4d_b32x8_imagenet_20210429-56066e27.pth", 77.90, 93.66),
            ("X-101-32x4d", "resnext101_32x4d_b32x8_imagenet_20210506-e0fa3dd5.pth", 78.61, 94.17),
            ("X-101-32x8d", "resnext101_32x8d_b32x8_imagenet_20210506-23a247d5.pth", 79.27, 94.58),
            ("X-152-32x4d", "resnext152_32x4d_b32x8_imagenet_20210524-927787be.pth", 78.88, 94.33),
        ],
    ),
    # v2 and X-101-64x4d: torchvision's newer recipe
    *_published(
        "torchvision",
        "torchvision",
        "BSD-3-Clause",
        _PYTORCH,
        [
            ("R-50", "resnet50-0676ba61.pth", 76.130, 92.862),
            ("R-101", "resnet101-63fe2227.pth", 77.374, 93.546),
            ("X-50-32x4d", "resnext50_32x4d-7cdf4587.pth", 77.618, 93.698),
            ("X-50-32x4d.v2", "resnext50_32x4d-1a0047aa.pth", 81.198, 95.340),
            ("X-101-32x8d", "resnext101_32x8d-8ba56ff5.pth", 79.312, 94.526),
            ("X-101-32x8d.v2", "resnext101_32x8d-110c445d.pth", 82.834, 96.228),
            ("X-101-64x4d", "resnext101_64x4d-173b62eb.pth", 83.246, 96.454),
        ],
    ),
    # timm's results/results-imagenet.csv at 224 pixels, also where timm prefers 288
    *_published(
        "timm",
        "timm",
        "Apache-2.0",
        _TIMM,
        [
            ("X-50-32x4d.a1", "v0.1-rsb-weights/resnext50_32x4d_a1_0-b5a91a1d.pth", 80.526, 94.458),
            ("X-50-32x4d.a1h", "v0.1-rsb-weights/resnext50_32x4d_a1h-0146ab0a.pth", 81.140, 95.320),
            ("X-50-32x4d.a2", "v0.1-rsb-weights/resnext50_32x4d_a2_0-efc76add.pth", 80.444, 94.630),
            ("X-50-32x4d.a3", "v0.1-rsb-weights/resnext50_32x4d_a3_0-3e450271.pth", 79.252, 94.290),
            ("X-50-32x4d.ra", "v0.1-weights/resnext50_32x4d_ra-d733960d.pth", 79.800, 94.608),
            ("X-101-64x4d.c1", "v0.1-tpu-weights/resnext101_64x4d_c-0d0e0cc0.pth", 82.446, 95.920),
        ],
    ),
    *_published(
        "timm",
        "timm",
        "Apache-2.0",
        _GLUON,
        [
            ("X-50-32x4d.gluon", "gluon_resnext50_32x4d-e6a097c1.pth", 79.354, 94.424),
            ("X-101-32x4d.gluon", "gluon_resnext101_32x4d-b253c8c4.pth", 80.336, 94.908),
            ("X-101-64x4d.gluon", "gluon_resnext101_64x4d-f9a8e184.pth", 80.640, 95.000),
        ],
    ),
    # Pretrained on YFCC100M without labels: README of semi-supervised-ImageNet1K-models
    *_published(
        "ssl",
        "torchvision",
        "CC-BY-NC-4.0",
        f"{_SEMI}supervised_",
        [
            ("X-50-32x4d", "resnext50_32x4-ddb3e555.pth", 80.3, 95.4),
            ("X-101-32x4d", "resnext101_32x4-dc43570a.pth", 81.0, 95.7),
            ("X-101-32x8d", "resnext101_32x8-2cfe2f8b.pth", 81.7, 96.1),
            ("X-101-32x16d", "resnext101_32x16-15fffa57.pth", 81.9, 96.2),
        ],
    ),
    # Pretrained on 940 million pictures with hashtags: the same README, and that of WSL-Images
    *_published(
        "swsl",
        "torchvision",
        "CC-BY-NC-4.0",
        f"{_SEMI}weakly_supervised_",
        [
            ("X-50-32x4d", "resnext50_32x4-72679e44.pth", 82.2, 96.3),
            ("X-101-32x4d", "resnext101_32x4-3f87e46b.pth", 83.4, 96.8),
            ("X-101-32x8d", "resnext101_32x8-b4712904.pth", 84.3, 97.2),
            ("X-101-32x16d", "resnext101_32x16-f3559a9c.pth", 84.8, 97.4),
        ],
    ),
    *_published(
        "wsl",
        "torchvision",
        "CC-BY-NC-4.0",
        _PYTORCH,
        [
            ("X-101-32x8d", "ig_resnext101_32x8-c38310e5.pth", 82.2, 96.4),
            ("X-101-32x16d", "ig_resnext101_32x16-c6f796b0.pth", 84.2, 97.2),
            ("X-101-32x32d", "ig_resnext101_32x32-e4b90b00.pth", 85.1, 97.5),
            ("X-101-32x48d", "ig_resnext101_32x48-3e41cc8a.pth", 85.4, 97.6),
        ],
    ),
    # Detectron's MODEL_ZOO.md; the md5 stands in its configs. IN5k: trained on ImageNet-5K.
    *_published(
        "detectron",
        "caffe2",
        "CC-BY-SA-3.0",
        f"{_FACEBOOK}detectron/ImageNetPretrained/",
        [
            ("X-101-64x4d", "FBResNeXt/X-101-64x4d.pkl", None, None, _FB_X101_64X4D_MD5),
            ("X-101-32x8d", "20171220/X-101-32x8d.pkl", None, None),
            ("X-152-32x8d.in5k", "25093814/X-152-32x8d-IN5k.pkl", None, None),
        ],
        DETECTRON,
    ),
    # As in Detectron2's faster_rcnn_X_101_32x8d_FPN_3x.yaml
    *_published(
        "detectron2",
        "caffe2",
        "CC-BY-SA-3.0",
        f"{_FACEBOOK}detectron2/ImageNetPretrained/FAIR/",
        [("X-101-32x8d", "X-101-32x8d.pkl", None, None)],
        IMAGENET.reordered("BGR"),
    ),
]

# By name, in the order in which `convert_weights.py --list` shows them
CATALOG = {entry.name: entry for entry in _ENTRIES}


def find(name: str) -> PublishedWeights:
    """Look up weights by their name, e.g. "torchvision/X-50-32x4d".

    Raises:
        UserError: (a ValueError) for an unknown name, with the nearest names.
    """
    if name not in CATALOG:
        raise UserError(
            f"no published weights are named {name!r}{suggest(name, CATALOG)} "
            "(python tools/convert_weights.py --list shows all)"
        )
    return CATALOG[name]


def by_sha256(digest: str) -> PublishedWeights | None:
    """Recognise a file of the catalog by its sha256, or return None.

    Args:
        digest: 64 hexadecimal digits.
    """
    known = (entry for entry in CATALOG.values() if entry.sha256_prefix)
    return next((e for e in known if digest.lower().startswith(e.sha256_prefix)), None)


def format_catalog() -> str:
    """All entries as a table for a terminal of 100 columns, accuracies in percent."""
    rows = [
        (
            entry.name,
            *("-" if accuracy is None else str(accuracy) for accuracy in (entry.top1, entry.top5)),
            entry.licence,
            entry.preprocessing.channel_order,
            "sha256" if entry.sha256_prefix else "md5" if entry.md5 else "none",
        )
        for entry in CATALOG.values()
    ]
    headers = ("name", "top-1 %", "top-5 %", "licence", "colours", "published hash")
    align = ("left", "decimal", "decimal", "left", "left", "left")
    table = tabulate(rows, headers=headers, colalign=align, disable_numparse=True)
    return (
        f"{table}\n\nAccuracies are as published (one crop of 224 x 224), not measured here.\n"
        "A name is used as MODEL.WEIGHTS resnext://NAME."
    )
