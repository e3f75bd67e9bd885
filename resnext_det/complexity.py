"""Parameters and multiply-adds: of the paper's networks beside its figures, and of whole detectors.

The paper's FLOPs are multiply-adds of convolutions and fully-connected layers (Section 3.1), here
counted by fvcore.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.analysis import FlopCountAnalysis as DetectorFlopCount
from fvcore.nn import FlopCountAnalysis
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import nn

from .evaluation.pictures import save_figure
from .modeling import ResNeXt
from .modeling.classifier import CifarResNeXt
from .variants import Variant

_LAYERS = ("conv", "linear", "addmm", "matmul")  # fvcore's names of what the paper counts


@dataclass(frozen=True)
class Row:
    """One network of a table.

    Attributes:
        name: as the paper has it, e.g. "ResNeXt-50 (32x4d)".
        parameters: number of weights, batch norm's included.
        multiply_adds: of convolutions and fully-connected layers, for one image.
        paper_parameters: the paper's figure, or None where it states none.
        paper_multiply_adds: likewise.
        approximate: the paper writes "~" before its figures.
    """

    name: str
    parameters: int
    multiply_adds: int
    paper_parameters: float | None = None
    paper_multiply_adds: float | None = None
    approximate: bool = False


def count(build: Callable[[], nn.Module], size: int) -> tuple[int, int]:
    """Count a classifier's parameters and multiply-adds.

    Args:
        build: makes the network.
        size: both sides of the RGB input, in pixels.

    Returns:
        Parameters, and multiply-adds of convolutions and fully-connected layers.
    """
    with torch.device("meta"):  # saves the time of initial values, which counting does not need
        model = build().eval()
    model.to_empty(device="cpu")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(model, torch.zeros(1, 3, size, size))
        analysis.unsupported_ops_warnings(False).tracer_warnings("none")
        by_operator = analysis.by_operator()
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, int(sum(by_operator[name] for name in _LAYERS))


def _imagenet_row(variant: Variant, *paper: object) -> Row:
    def build() -> nn.Module:
        return ResNeXt(variant.depth, variant.cardinality, variant.width, num_classes=1000)

    kind = "ResNet" if variant.cardinality == 1 else "ResNeXt"
    name = f"{kind}-{variant.depth} ({variant.cardinality}x{variant.width}d)"
    return Row(name, *count(build, 224), *paper)


def _cifar_row(cardinality: int, width: int, parameters: float) -> Row:
    def build() -> nn.Module:
        return CifarResNeXt(29, cardinality, width)

    return Row(f"ResNeXt-29 ({cardinality}x{width}d)", *count(build, 32), parameters)


def _block_row(cardinality: int) -> Row:
    """Table 2 counts the three layers of one block of conv2 at 56x56, without batch norm."""
    variant = Variant(50).with_cardinality(cardinality)
    parameters = variant.template_parameters
    name = f"C {cardinality}, d {variant.width}, group width {variant.bottleneck_channels}"
    return Row(name, parameters, parameters * 56 * 56, 70e3, 0.22e9, True)


# (variant, parameters, multiply-adds, "~"); None where the paper states no figure.
_IMAGENET_TABLES = {
    # Table 1 states both.
    "1": (("R-50", 25.5e6, 4.1e9, False), ("X-50-32x4d", 25.0e6, 4.2e9, False)),
    # Table 3's caption states ~4.1 and ~7.8 billion FLOPs; Fig. 5's ~25 and ~44 million parameters.
    "3": (
        *((f"X-50-{t}d", 25e6, 4.1e9, True) for t in ("1x64", "2x40", "4x24", "8x14", "32x4")),
        *((f"X-101-{t}d", 44e6, 7.8e9, True) for t in ("1x64", "2x40", "4x24", "8x14", "32x4")),
    ),
    # Section 5.1: ~15 billion FLOPs for the 2x models; no parameters.
    "4": (
        *((name, None, 7.8e9, True) for name in ("R-101", "X-101-32x4d")),
        *(
            (name, None, 15e9, True)
            for name in ("R-200", "X-101-1x100d", "X-101-2x64d", "X-101-64x4d")
        ),
    ),
}
TABLES = ("1", "2", "3", "4", "7")


def table(number: str) -> list[Row]:
    """Count the networks of one of the paper's tables.

    Args:
        number: one of `TABLES`.

    Raises:
        ValueError: for another table.
    """
    if number == "2":
        return [_block_row(c) for c in (1, 2, 4, 8, 32)]
    if number == "7":
        return [_cifar_row(8, 64, 34.4e6), _cifar_row(16, 64, 68.1e6)]
    if number not in _IMAGENET_TABLES:
        raise ValueError(f"table {number!r} is not one of {', '.join(TABLES)}")
    return [_imagenet_row(Variant.parse(name), *paper) for name, *paper in _IMAGENET_TABLES[number]]


def _difference(ours: float, paper: float | None) -> str:
    return "" if paper is None else f"{100 * (ours / paper - 1):+.1f} %"


def _paper(row: Row, figure: float | None, scale: float) -> str:
    return "" if figure is None else f"{'~' if row.approximate else ''}{figure / scale:.4g}"


def format_table(rows: Sequence[Row]) -> str:
    """Print rows as text, with the paper's figures and the differences."""
    small = max(row.parameters for row in rows) < 1e6
    unit, scale = ("k", 1e3) if small else ("M", 1e6)
    cells = [
        [
            row.name,
            f"{row.parameters / scale:.2f}",
            _paper(row, row.paper_parameters, scale),
            _difference(row.parameters, row.paper_parameters),
            f"{row.multiply_adds / 1e9:.2f}",
            _paper(row, row.paper_multiply_adds, 1e9),
            _difference(row.multiply_adds, row.paper_multiply_adds),
        ]
        for row in rows
    ]
    headers = ["network", f"params ({unit})", "paper", "diff", "mult-adds (G)", "paper", "diff"]
    return tabulate(cells, headers, stralign="right", disable_numparse=True)


@dataclass(frozen=True)
class DetectorComplexity:
    """What a detector costs for one image at test time.

    Attributes:
        parameters: of each part.
        multiply_adds: of each part, all operators that fvcore counts.
        regions: proposals that the RoI heads worked on; None without RoI heads.
        detections: boxes that remained of them, on which mask and keypoint heads worked.
        unsupported: operators that fvcore does not count, with their number of calls.
    """

    parameters: dict[str, int]
    multiply_adds: dict[str, int]
    regions: int | None
    detections: int | None
    unsupported: dict[str, int]


def _part(name: str) -> str:
    """The part that a module or parameter belongs to, e.g. backbone.bottom_up.res2.0 -> res2."""
    names = name.split(".")
    if names[0] == "backbone":
        layer = name.removeprefix("backbone.").removeprefix("bottom_up.").split(".")[0]
        return layer if layer.startswith(("stem", "res")) else "FPN"
    return {"proposal_generator": "RPN", "roi_heads": "RoI heads"}.get(names[0], names[0])


def detector_complexity(cfg: CfgNode, height: int, width: int) -> DetectorComplexity:
    """Count a whole detector on one image of the given size, with random weights.

    The count of the RoI heads is for the number of proposals that survive NMS, at most
    `MODEL.RPN.POST_NMS_TOPK_TEST`, and for detections of any score, at most
    `TEST.DETECTIONS_PER_IMAGE`. Constants of frozen batch norms are not parameters.

    Args:
        cfg: the detector; its weights are not loaded.
        height: of the image that enters the network, in pixels.
        width: likewise.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0  # random scores would leave mask heads nothing
    model = build_model(cfg).eval()
    regions: list[int] = []
    detections: list[int] = []
    heads = getattr(model, "roi_heads", None)
    if heads is not None:
        heads.register_forward_pre_hook(lambda _, inputs: regions.append(len(inputs[2][0])))
        heads.register_forward_hook(lambda *call: detections.append(len(call[2][0][0])))
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    sample = {"image": image, "height": height, "width": width}
    if cfg.MODEL.LOAD_PROPOSALS:
        sample["proposals"] = _some_proposals(
            cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST, height, width
        )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        analysis = DetectorFlopCount(model, [sample])
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        by_module = analysis.by_module()
        unsupported = dict(analysis.unsupported_ops())
    multiply_adds: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for name, value in model.named_parameters():
        parameters[_part(name)] += value.numel()
    for name, _ in model.named_modules():
        # Detectron2's counter wraps the detector as `model`
        children = (f"model.{child}" for child in _children(model, name))
        own = by_module[f"model.{name}".rstrip(".")] - sum(by_module[child] for child in children)
        multiply_adds[_part(name) if name else "rest"] += int(own)
    order = dict.fromkeys([*parameters, *(k for k, v in multiply_adds.items() if v)])
    return DetectorComplexity(
        {part: parameters[part] for part in order},
        {part: multiply_adds[part] for part in order},
        regions[-1] if regions else None,
        detections[-1] if detections else None,
        unsupported,
    )


def _some_proposals(number: int, height: int, width: int) -> Instances:
    corners = torch.rand(number, 2) * torch.tensor([width, height]) / 2
    proposals = Instances((height, width))
    proposals.proposal_boxes = Boxes(torch.cat([corners, corners + min(width, height) / 2], dim=1))
    proposals.objectness_logits = torch.zeros(number)
    return proposals


def _children(model: nn.Module, name: str) -> list[str]:
    prefix = f"{name}." if name else ""
    return [prefix + child for child, _ in model.get_submodule(name).named_children()]


def format_detector(result: DetectorComplexity) -> str:
    """Print a detector's parts as text, with what was not counted."""
    cells = [
        [part, f"{result.parameters[part] / 1e6:.2f}", f"{result.multiply_adds[part] / 1e9:.2f}"]
        for part in result.parameters
    ]
    totals = sum(result.parameters.values()) / 1e6, sum(result.multiply_adds.values()) / 1e9
    cells.append(["total", *(f"{total:.2f}" for total in totals)])
    text = tabulate(
        cells, ["part", "params (M)", "mult-adds (G)"], stralign="right", disable_numparse=True
    )
    if result.regions is not None:
        text += f"\nRoI heads on {result.regions} proposals, {result.detections} detections"
    if result.unsupported:
        names = ", ".join(f"{name} ({n}x)" for name, n in sorted(result.unsupported.items()))
        text += f"\nnot counted: {names}"
    return text


def plot_cardinality(png: Path) -> None:
    """Plot Eqn. 4: width, and parameters of the whole ResNeXt-50, against cardinality."""
    cardinalities = [1, 2, 4, 8, 16, 32, 64]
    variants = [Variant(50).with_cardinality(c) for c in cardinalities]
    rows = [_imagenet_row(v) for v in variants]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    widths, parameters = figure.subplots(1, 2)
    widths.plot(cardinalities, [v.width for v in variants], "o-", label="bottleneck width d")
    group_widths = [v.bottleneck_channels for v in variants]
    widths.plot(cardinalities, group_widths, "s--", label="group width C d")
    widths.set(ylabel="channels in conv2", title="width that preserves complexity (Eqn. 4)")
    widths.legend()
    parameters.plot(cardinalities, [r.parameters / 1e6 for r in rows], "o-")
    parameters.set(ylabel="parameters (M)", title="the whole 50-layer network", ylim=(0, 30))
    for axes in (widths, parameters):
        axes.set_xscale("log", base=2)
        axes.set_xticks(cardinalities, [str(c) for c in cardinalities])
        axes.set_xlabel("cardinality C")
        axes.grid(alpha=0.3)
    save_figure(figure, png)


def as_json(result: Sequence[Row] | DetectorComplexity) -> object:
    """The same figures as plain lists and dicts."""
    return asdict(result) if isinstance(result, DetectorComplexity) else [asdict(r) for r in result]
