"""Table 8 of the paper: ResNet against ResNeXt in Faster R-CNN on COCO, beside our figures."""

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from detectron2.utils import comm
from tabulate import tabulate

from ..errors import UserError
from ..paper import TABLE8
from .resumable import on_main, read_results, refuse_old_run, train_or_skip
from .setup import read_config, set_up_logs
from .two_step import add_launch_flags, overrides_for, train_two_step

logger = logging.getLogger(__name__)

METRICS = {"AP50": "AP@0.5", "AP": "AP"}  # the paper's order
_QUICK_NOTE = (
    "These are figures of toy data (the embedded shapes) and of small networks: comparable only "
    "among themselves, not with the paper's nor with any on COCO."
)


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: as in `--runs` and in the names of configs and folders.
        network: as the table shows it.
        quick: name of the small network that stands for it in `--quick`.
        paper: published figures by metric, percent.
    """

    name: str
    network: str
    quick: str
    paper: Mapping[str, float]


ROWS = (
    Row("R50", "ResNet-50 1x64d", "X50_1x16d", TABLE8["R50"]),
    Row("X50_32x4d", "ResNeXt-50 32x4d", "X50_4x6d", TABLE8["X50_32x4d"]),
    Row("R101", "ResNet-101 1x64d", "X101_1x16d", TABLE8["R101"]),
    Row("X101_32x4d", "ResNeXt-101 32x4d", "X101_4x6d", TABLE8["X101_32x4d"]),
)
_PAIRS = ((50, ROWS[0], ROWS[1]), (101, ROWS[2], ROWS[3]))  # depth, ResNet, ResNeXt

Measured = Mapping[str, Mapping[str, float]]  # row name to metric to percent; NaN: none


def table8_parser() -> argparse.ArgumentParser:
    """The command line of `tools/table8.py`."""
    parser = argparse.ArgumentParser(
        description="Print the paper's Table 8: train its four rows, or read finished runs.",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--two-step", action="store_true", help="train as Appendix B, not jointly")
    how.add_argument("--quick", action="store_true", help="four small networks on the shapes")
    how.add_argument(
        "--runs", nargs="+", metavar="ROW=FOLDER", help=f"rows: {', '.join(r.name for r in ROWS)}"
    )
    parser.add_argument("--json", metavar="FILE", help="write the table there as well")
    add_launch_flags(parser)
    return parser


def make_table8(args: argparse.Namespace) -> dict:
    """Train the four rows, each in `OUTPUT_DIR/<row>`, or read finished runs; print the table.

    With `resume` finished rows are skipped and the others go on.

    Args:
        args: parsed by `table8_parser()`.

    Returns:
        The content of the JSON file on the main process; elsewhere an empty dict.

    Raises:
        UserError: for an unknown row, a run without results, or as `train_or_evaluate`.
    """
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UserError(f"--json {args.json}: its folder does not exist")
    if args.runs:
        if args.opts:
            raise UserError(f"--runs trains nothing: {args.opts[0]} has no effect")
        measured = read_runs(args.runs)
    else:
        measured = _train_rows(args)
    if not comm.is_main_process():
        return {}
    content = table_content(measured, quick=args.quick)
    heading = "Table 8, " + ("small networks on toy data" if args.quick else "COCO minival")
    kind = "two steps" if args.two_step else "joint training"
    print(f"{heading}{'' if args.runs else f', {kind}'}, in percent")
    print(format_table8(measured, quick=args.quick))
    if args.quick:
        print(_QUICK_NOTE)
    if args.json:
        _write_json(content, Path(args.json))
    return content


def read_runs(words: Sequence[str]) -> dict[str, dict[str, float]]:
    """Read the results of finished runs.

    Args:
        words: ROW=FOLDER each; FOLDER is an `OUTPUT_DIR` of joint or of two-step training.

    Raises:
        UserError: for another form, an unknown or repeated row, or a folder without box results.
    """
    names = [row.name for row in ROWS]
    measured: dict[str, dict[str, float]] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or not folder or name not in names:
            raise UserError(f"--runs {word}: write ROW=FOLDER, ROW one of {', '.join(names)}")
        if name in measured:
            raise UserError(f"--runs: {name} is there twice")
        measured[name] = _read_run(Path(folder), warn=True)
    return measured


def table_content(measured: Measured, *, quick: bool) -> dict:
    """The table as JSON values, percent and points; None where a figure is absent.

    Args:
        measured: by row name.
        quick: leave out the paper's figures.
    """

    def clean(values: Mapping[str, float]) -> dict:
        return {k: None if math.isnan(v) else round(v, 4) for k, v in values.items()}

    rows, differences = {}, {}
    for row in ROWS:
        rows[row.name] = {
            "network": row.quick if quick else row.network,
            "measured": clean(_figures(measured, row)),
            **({} if quick else {"paper": dict(row.paper)}),
        }
    for depth, resnet, resnext in _PAIRS:
        differences[str(depth)] = {
            "measured": clean(_difference(_figures(measured, resnext), _figures(measured, resnet))),
            **({} if quick else {"paper": clean(_difference(resnext.paper, resnet.paper))}),
        }
    content = {"rows": rows, "resnext_minus_resnet": differences}
    return {"note": _QUICK_NOTE, **content} if quick else content


def format_table8(measured: Measured, *, quick: bool) -> str:
    """Print the rows and the differences; what is absent prints as n/a.

    Args:
        measured: AP@0.5 and AP in percent, by row name.
        quick: name the small networks and leave out the paper's figures.
    """
    lines = []
    for row in ROWS:
        paper = {} if quick else row.paper
        name = row.quick if quick else row.network
        lines.append([name, *_cells(_figures(measured, row), paper, ".1f")])
    for depth, resnet, resnext in _PAIRS:
        paper = {} if quick else _difference(resnext.paper, resnet.paper)
        ours = _difference(_figures(measured, resnext), _figures(measured, resnet))
        lines.append([f"ResNeXt minus ResNet, {depth}", *_cells(ours, paper, "+.1f")])
    headers = [""]
    for shown in METRICS.values():
        headers += [shown] if quick else [shown, "paper"]
    return tabulate(lines, headers, tablefmt="simple", stralign="right", disable_numparse=True)


def _train_rows(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    configs = {row.name: _config_names(row, args) for row in ROWS}
    steps = ("RPN", "FAST") if args.two_step else (None,)
    opts = {step: overrides_for(step, args.opts) if step else args.opts for step in steps}
    for names in configs.values():  # all are checked before the first of four trainings
        for step, name in zip(steps, names, strict=True):
            root = Path(read_config(name, opts[step])[0].OUTPUT_DIR)
    folders = {row.name: root / row.name for row in ROWS}
    if not args.resume:
        runs = [f / run for f in folders.values() for run in (".", "rpn", "fast_rcnn")]
        refuse_old_run(root, runs)
    measured = {}
    for name, folder in folders.items():
        set_up_logs(str(root))
        logger.info("row %s: training in %s", name, folder)
        words = {**vars(args), "opts": [*args.opts, "OUTPUT_DIR", str(folder)]}
        if args.two_step:
            words["rpn_config"], words["fast_rcnn_config"] = configs[name]
            train_two_step(argparse.Namespace(**words))
        else:
            train_or_skip(argparse.Namespace(**words, config_file=configs[name][0]))
        measured[name] = on_main(lambda folder=folder: _read_run(folder))
    return measured


def _config_names(row: Row, args: argparse.Namespace) -> list[str]:
    if args.quick:
        return [f"quick/table8/faster_rcnn_{row.quick}_FPN"]
    if args.two_step:
        return [f"paper/rpn_{row.name}", f"paper/fast_rcnn_{row.name}"]
    return [f"faster_rcnn_{row.name}"]


def _read_run(folder: Path, *, warn: bool = False) -> dict[str, float]:
    if (folder / "fast_rcnn").is_dir():
        folder = folder / "fast_rcnn"
    results = read_results(folder)
    if "bbox" not in results or not all(m in results["bbox"] for m in METRICS):
        raise UserError(f"{folder}/results.json has no box AP of one test set")
    if warn:
        _warn_of_other_data(folder)
    return {metric: float(results["bbox"][metric]) for metric in METRICS}


def _warn_of_other_data(folder: Path) -> None:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        tested = list(config["DATASETS"]["TEST"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return
    if tested != ["coco_minival"]:
        print(f"warning: {folder} was tested on {', '.join(tested)}, not on coco_minival")


def _figures(measured: Measured, row: Row) -> dict[str, float]:
    return {metric: measured.get(row.name, {}).get(metric, math.nan) for metric in METRICS}


def _difference(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {metric: a[metric] - b[metric] for metric in METRICS}


def _cells(ours: Mapping[str, float], paper: Mapping[str, float], form: str) -> list[str]:
    cells = []
    for metric in METRICS:
        cells.append("n/a" if math.isnan(ours[metric]) else format(ours[metric], form))
        if paper:
            cells.append(format(paper[metric], form))
    return cells


def _write_json(content: dict, path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error}") from error
