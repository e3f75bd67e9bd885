"""From a classifier to a detector on the embedded shapes: what pre-training gains, in minutes."""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detectron2.utils import comm
from matplotlib.figure import Figure
from tabulate import tabulate

from ..data.drawing import save_figure
from ..data.formats import write_json
from ..engine.launch import base_parser
from ..engine.resumable import DETECTION, Kind, refuse_old_run, train_or_skip
from ..engine.setup import read_config, set_up_logs
from ..errors import UserError
from .training import CLASSIFICATION

logger = logging.getLogger(__name__)

_CLASSIFIER = "classification/quick/X26_8x4d_shapes"
_DETECTOR = "quick/faster_rcnn_X26_8x4d_FPN"
_SCRATCH, _LONGER, _TUNED = "from scratch", "from scratch, longer", "from the classifier"


@dataclass(frozen=True)
class Curve:
    """A detector's training.

    Attributes:
        name: of the way it was trained.
        iterations: of the detector.
        seconds: of these and, where there was one, of the pre-training; without evaluations.
        ap: AP in percent, by iterations done.
        pretraining: seconds of it.
    """

    name: str
    iterations: int
    seconds: float
    ap: dict[int, float]
    pretraining: float = 0.0

    @property
    def last(self) -> float:
        """AP at the end."""
        return self.ap[max(self.ap)]


def pretraining_parser() -> argparse.ArgumentParser:
    """The command line of `tools/pretrain_shapes.py`."""
    parser = base_parser()
    # the classifier's own data set, not one of the command line
    parser.set_defaults(config_file="", data=None, train_data=None, val_data=None)
    parser.add_argument(
        "--iterations", type=int, default=300, metavar="N", help="of the detectors (default 300)"
    )
    return parser


def compare_pretraining(args: argparse.Namespace) -> dict:
    """Train a classifier on crops of the shapes, and detectors with and without it.

    The detector that starts from the classifier has frozen batch norms, as in Appendix B. Without,
    it is trained twice: for as many iterations, and for as many seconds as both trainings together.
    Writes `OUTPUT_DIR`/pretraining.json and pretraining.png, and prints a table.

    Args:
        args: parsed by `pretraining_parser()`.

    Returns:
        The content of the JSON file on the main process; elsewhere an empty dict.

    Raises:
        UserError: for impossible numbers, or as `train_or_evaluate`.
    """
    if args.config_file or args.eval_only:
        raise UserError(
            "the configs are given, and need training: leave out --config-file and --eval-only"
        )
    if args.iterations < 4:
        raise UserError(f"--iterations {args.iterations}: at least 4")
    root = Path(read_config(_DETECTOR, args.opts)[0].OUTPUT_DIR)
    folders = {name: root / name for name in ("classifier", "scratch", "longer", "tuned")}
    if not args.resume:
        refuse_old_run(root, list(folders.values()))

    def train(kind: Kind, config: str, folder: Path, words: Sequence[str]) -> float:
        """Returns the seconds of the training's iterations."""
        set_up_logs(str(root))
        logger.info("training in %s", folder)
        opts = [*args.opts, *words, "OUTPUT_DIR", str(folder)]
        job = argparse.Namespace(**{**vars(args), "config_file": config, "opts": opts})
        train_or_skip(job, kind=kind)
        return _seconds(folder)

    def detector(name: str, at: str, iterations: int, *words: str, before: float = 0.0) -> Curve:
        period = -(-iterations // 6)
        schedule = {
            "SOLVER.MAX_ITER": iterations,
            "SOLVER.WARMUP_ITERS": min(100, iterations // 4),
            "TEST.EVAL_PERIOD": period,
        }
        words = [*(str(w) for pair in schedule.items() for w in pair), *words]
        seconds = train(DETECTION, _DETECTOR, folders[at], words)
        return Curve(name, iterations, before + seconds, _aps(folders[at]), before)

    before = train(CLASSIFICATION, _CLASSIFIER, folders["classifier"], [])
    weights = folders["classifier"] / "model_final.pth"
    start = ("MODEL.WEIGHTS", str(weights), "MODEL.RESNETS.NORM", "FrozenBN")
    tuned = detector(_TUNED, "tuned", args.iterations, *start, before=before)
    scratch = detector(_SCRATCH, "scratch", args.iterations)
    more = round(args.iterations * tuned.seconds / scratch.seconds)
    more = max(args.iterations, comm.all_gather(more)[0])
    curves = [scratch, detector(_LONGER, "longer", more), tuned]
    if not comm.is_main_process():
        return {}
    content = {"detectors": [asdict(curve) for curve in curves], "pretraining_seconds": before}
    write_json(content, root / "pretraining.json")
    draw(curves, root / "pretraining.png")
    print(format_curves(curves))
    print(f"wrote {root / 'pretraining.json'} and pretraining.png")
    return content


def _seconds(folder: Path) -> float:
    """What a finished run's iterations took, by the medians in its metrics.json."""
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    total, last = 0.0, -1
    for row in rows:
        if "time" in row and row["iteration"] > last:
            total += row["time"] * (row["iteration"] - last)
            last = row["iteration"]
    return total


def _aps(folder: Path) -> dict[int, float]:
    entries = json.loads((folder / "evaluations.json").read_text(encoding="utf-8"))
    return {entry["iteration"]: entry["value"] or 0.0 for entry in entries}


def format_curves(curves: Sequence[Curve]) -> str:
    """A table of the detectors."""
    rows = [
        (c.name, c.iterations, f"{c.seconds:.0f}", f"{c.pretraining:.0f}", f"{c.last:.1f}")
        for c in curves
    ]
    headers = ("detector", "iterations", "seconds", "of these pre-training", "AP, %")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def draw(curves: Sequence[Curve], file: Path) -> None:
    """Plot AP against seconds of training, pre-training included.

    Raises:
        UserError: if the picture cannot be written.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for curve, marker in zip(curves, ("o", "s", "^"), strict=True):
        rate = (curve.seconds - curve.pretraining) / curve.iterations
        seconds = [curve.pretraining + rate * done for done in curve.ap]
        axes.plot(seconds, list(curve.ap.values()), marker=marker, label=curve.name)
        if curve.pretraining:
            axes.axvspan(0, curve.pretraining, alpha=0.08, color="grey", label="pre-training")
    axes.set_xlabel("seconds of training, without evaluations")
    axes.set_ylabel("AP on shapes_minival, %")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, file, dpi=120)
