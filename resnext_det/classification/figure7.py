"""Fig. 7 of the paper: test error against size, with more paths and with wider ones."""

import argparse
import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tabulate import tabulate

from ..data.drawing import save_figure
from ..data.formats import write_json
from ..engine.resumable import on_main, refuse_old_run, train_or_skip
from ..engine.setup import set_up_logs
from ..errors import UserError
from ..modeling.classifier import build_classifier_network
from .training import CLASSIFICATION, argument_parser, data_overrides, read_config

logger = logging.getLogger(__name__)

_CONFIG = "classification/X29_8x64d_cifar10"
_SERIES = {"cardinality": "more paths, {}d each", "width": "one path, wider"}


@dataclass(frozen=True)
class Template:
    """A network of the figure.

    Attributes:
        cardinality: C.
        width: d, channels of a path in res2.
    """

    cardinality: int
    width: int

    def __str__(self) -> str:
        return f"{self.cardinality}x{self.width}d"

    @property
    def overrides(self) -> list[str]:
        """KEY VALUE words."""
        sizes = {"NUM_GROUPS": self.cardinality, "WIDTH_PER_GROUP": self.width}
        return [w for key, n in sizes.items() for w in (f"MODEL.RESNETS.{key}", str(n))]


@dataclass(frozen=True)
class Point:
    """What the runs of a network found.

    Attributes:
        network: its template, e.g. "8x64d".
        parameters: number of them.
        errors: top-1 errors of its runs, in percent.
    """

    network: str
    parameters: int
    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the errors."""
        return statistics.mean(self.errors)

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None with a single run."""
        if len(self.errors) < 2:
            return None
        return statistics.stdev(self.errors) / len(self.errors) ** 0.5


def figure7_parser() -> argparse.ArgumentParser:
    """The command line of `tools/figure7.py`."""
    parser = argument_parser()
    parser.set_defaults(config_file=_CONFIG)
    group = parser.add_argument_group("the figure's networks")
    group.add_argument(
        "--cardinalities", type=_numbers, default=(1, 2, 4, 8, 16), metavar="C,C,..."
    )
    group.add_argument("--width", type=int, default=64, metavar="D", help="of each path")
    group.add_argument(
        "--widths",
        type=_numbers,
        default=(64, 96, 144, 224, 320),
        metavar="D,D,...",
        help="of the networks of one path; the default ones have about as many parameters as the "
        "networks of the default's cardinalities",
    )
    group.add_argument("--runs", type=int, default=10, metavar="N", help="seeds 1..N (default 10)")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(map(int, text.split(","))))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers like 8 or 1,2,4") from None


def make_figure7(args: argparse.Namespace) -> dict:
    """Train all networks, each in `OUTPUT_DIR`/<network>/seed<n>; print a table and draw the plot.

    Writes `OUTPUT_DIR`/figure7.json and figure7.png. With `--resume` finished runs are skipped and
    the others go on.

    Args:
        args: parsed by `figure7_parser()`.

    Returns:
        The content of the JSON file on the main process; elsewhere an empty dict.

    Raises:
        UserError: for impossible numbers, or as `train_or_evaluate`.
    """
    if args.eval_only:
        raise UserError("--eval-only: the figure needs training; --resume skips finished runs")
    if args.runs < 1:
        raise UserError(f"--runs {args.runs}: at least 1")
    overrides = [*data_overrides(args), *args.opts]
    series = {
        "cardinality": [Template(c, args.width) for c in args.cardinalities],
        "width": [Template(1, d) for d in args.widths],
    }
    templates = list(dict.fromkeys(t for each in series.values() for t in each))
    configs = {t: read_config(args.config_file, [*overrides, *t.overrides])[0] for t in templates}
    root = Path(next(iter(configs.values())).OUTPUT_DIR)
    folders = {
        (t, n): root / str(t) / f"seed{n}" for t in templates for n in range(1, args.runs + 1)
    }
    if not args.resume:
        refuse_old_run(root, list(folders.values()))
    points = {}
    for template, cfg in configs.items():
        errors = []
        for seed in range(1, args.runs + 1):
            folder = folders[template, seed]
            set_up_logs(str(root))
            logger.info("network %s, seed %d: training in %s", template, seed, folder)
            words = [*template.overrides, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
            run = {**vars(args), "opts": [*overrides, *words], "data": None}
            run |= {"train_data": None, "val_data": None}  # they are among the overrides
            results = train_or_skip(argparse.Namespace(**run), kind=CLASSIFICATION)
            errors += on_main(lambda results=results, at=folder: [_error_of(results, at)])
        points[template] = Point(str(template), count_parameters(cfg), tuple(errors))
    if not comm.is_main_process():
        return {}
    found = {name: [points[t] for t in each] for name, each in series.items()}
    content = {
        name: [{**asdict(p), "mean": p.mean, "standard_error": p.standard_error} for p in each]
        for name, each in found.items()
    }
    write_json(content, root / "figure7.json")
    draw(found, args.width, root / "figure7.png")
    print(format_points(found, args.width))
    print(f"wrote {root / 'figure7.json'} and figure7.png")
    return content


def _error_of(results: dict, folder: Path) -> float:
    if not results:
        raise UserError(
            f"{folder} did not come to its end, so the figure is not whole: go on with --resume"
        )
    return results["classification"]["top1_error"]


def count_parameters(cfg: CfgNode) -> int:
    """Parameters of a config's network."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_classifier_network(cfg).parameters())


def format_points(found: dict[str, Sequence[Point]], width: int) -> str:
    """A table of both series."""
    rows = []
    for name, points in found.items():
        for point in sorted(points, key=lambda p: p.parameters):
            error = point.standard_error
            spread = "-" if error is None else f"{error:.2f}"
            rows.append(
                (
                    _SERIES[name].format(width),
                    point.network,
                    f"{point.parameters / 1e6:.2f}",
                    f"{point.mean:.2f}",
                    spread,
                    len(point.errors),
                )
            )
    headers = ("series", "network", "parameters, M", "test error, %", "standard error", "runs")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def draw(found: dict[str, Sequence[Point]], width: int, file: Path) -> None:
    """Plot errors against parameters, with bars of one standard error.

    Raises:
        UserError: if the picture cannot be written.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for (name, points), marker in zip(found.items(), ("o", "s"), strict=True):
        ordered = sorted(points, key=lambda p: p.parameters)
        sizes = [p.parameters / 1e6 for p in ordered]
        axes.errorbar(
            sizes,
            [p.mean for p in ordered],
            yerr=[p.standard_error or 0 for p in ordered],
            marker=marker,
            capsize=3,
            label=_SERIES[name].format(width),
        )
        for size, point in zip(sizes, ordered, strict=True):
            axes.annotate(
                point.network,
                (size, point.mean),
                xytext=(5, 5 if name == "width" else -12),
                textcoords="offset points",
                fontsize=8,
            )
    runs = {len(p.errors) for points in found.values() for p in points}
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel("test error, %")
    axes.set_title(f"mean of {max(runs)} runs, bars: standard error" if max(runs) > 1 else "1 run")
    axes.margins(x=0.1)  # room for the names
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, file, dpi=120)
