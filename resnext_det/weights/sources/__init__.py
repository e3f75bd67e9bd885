"""One module per public source of weights; each renames tensors to Detectron2's names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from . import cadene, caffe2, detectron2, openmmlab, timm, torch7, torchvision
from .rules import Conversion, Drops, Rules, share_explained

__all__ = ["SOURCES", "Conversion", "Source", "detect"]


@dataclass(frozen=True)
class Source:
    """A layout of weight files.

    Attributes:
        convert: the file's tensors (for torch7 the tree of modules) -> Detectron2's names.
        rules: of renaming, to tell the source from the names; none for torch7.
        drops: likewise.
    """

    convert: Callable[..., Conversion]
    rules: Rules = ()
    drops: Drops = ()


# The first of those that explain as many names is taken, so the more special ones come later.
SOURCES = {
    # its own files, WSL, SSL, SWSL, MoCo, OpenMMLab's third_party
    "torchvision": Source(torchvision.from_torchvision, torchvision.RULES, torchvision.DROPS),
    "timm": Source(timm.from_timm, torchvision.RULES),
    "cadene": Source(cadene.from_cadene, cadene.RULES),
    "openmmlab": Source(openmmlab.from_openmmlab, openmmlab.RULES, openmmlab.DROPS),
    "caffe2": Source(caffe2.from_caffe2, caffe2.RULES, caffe2.DROPS),
    # trained detectors, and what convert_weights.py writes
    "detectron2": Source(detectron2.from_detectron2, detectron2.RULES, detectron2.DROPS),
    "torch7": Source(torch7.from_torch7),  # the authors' .t7 files
}


def detect(tensors: Mapping[str, Tensor]) -> str | None:
    """The source whose rules explain most of the names, None if none explains half of them."""
    shares = {
        name: share_explained(tensors, s.rules, s.drops, own_names=name == "detectron2")
        for name, s in SOURCES.items()
        if s.rules
    }
    best = max(shares, key=shares.get)
    return best if shares[best] >= 0.5 else None
