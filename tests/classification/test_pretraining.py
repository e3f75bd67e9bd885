"""What pre-training gains: the table, the plot, and the whole comparison."""

import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from resnext_det.classification import pretraining
from resnext_det.classification.pretraining import (
    Curve,
    compare_pretraining,
    draw,
    format_curves,
    pretraining_parser,
)
from resnext_det.data import shapes
from resnext_det.engine import run_job
from tests.helpers import REPO, run_tool

CURVES = [
    Curve("from scratch", 300, 60.0, {100: 5.0, 200: 9.5, 300: 12.0}),
    Curve("from scratch, longer", 450, 90.0, {225: 10.0, 450: 15.25}),
    Curve("from the classifier", 300, 90.0, {150: 20.0, 300: 31.06}, pretraining=30.0),
]


def run(*words):
    arguments = pretraining_parser().parse_args([str(w) for w in words])
    return run_job(compare_pretraining, arguments)


def rows_of(table):
    return [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_last_evaluation_counts():
    assert Curve("", 9, 1.0, {9: 4.0, 3: 50.0}).last == 4.0


def test_the_table_has_seconds_and_the_last_ap():
    assert rows_of(format_curves(CURVES)) == [
        ["from scratch", "300", "60", "0", "12.0"],
        ["from scratch, longer", "450", "90", "0", "15.2"],
        ["from the classifier", "300", "90", "30", "31.1"],
    ]


def test_the_plot_begins_the_tuned_detector_after_the_pre_training(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        pretraining, "Figure", lambda *a, **k: figures.append(Figure(*a, **k)) or figures[-1]
    )
    draw(CURVES, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.format == "PNG" and min(image.size) > 300
    (axes,) = figures[0].axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == [c.name for c in CURVES]
    seconds = [list(line.get_xdata()) for line in lines.values()]
    assert seconds == [
        pytest.approx([20, 40, 60]),
        pytest.approx([45, 90]),
        pytest.approx([60, 90]),  # 30 of pre-training, then 30 for each half
    ]
    assert list(lines["from the classifier"].get_ydata()) == [20.0, 31.06]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "pre-training" in labels
    assert axes.get_xlim()[0] == axes.get_ylim()[0] == 0


def test_seconds_are_the_medians_times_the_iterations_they_stand_for(tmp_path):
    rows = [
        {"iteration": 19, "time": 0.5, "total_loss": 1.0},
        {"iteration": 29, "bbox/AP": 3.0},  # an evaluation's line
        {"iteration": 39, "time": 0.25},
        {"iteration": 34, "time": 9.0},  # again, of a run that went on
    ]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert pretraining._seconds(tmp_path) == pytest.approx(20 * 0.5 + 20 * 0.25)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--iterations", 3], "--iterations 3: at least 4"),
        (["--eval-only"], "leave out --config-file and --eval-only"),
        (["--config-file", "faster_rcnn_R50"], "leave out --config-file and --eval-only"),
        (["SOLVER.LR", 1], "unknown config key 'SOLVER.LR'"),
    ],
)
def test_mistakes_are_one_line_before_any_training(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 2, "shapes_minival": 2})
    monkeypatch.setattr(pretraining, "train_or_skip", lambda *_, **__: pytest.fail("trained"))
    assert run(*words, "OUTPUT_DIR", tmp_path / "output") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_a_used_folder_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 2, "shapes_minival": 2})
    (tmp_path / "output/scratch").mkdir(parents=True)
    (tmp_path / "output/scratch/last_checkpoint").write_text("model_final.pth")
    assert run("OUTPUT_DIR", tmp_path / "output") == 1
    assert f"OUTPUT_DIR {tmp_path / 'output'} holds a run already" in capsys.readouterr().err


def test_each_detector_gets_its_schedule_and_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 2, "shapes_minival": 2})
    output = tmp_path / "output"
    seconds = {"classifier": 2.0, "tuned": 3.0, "scratch": 2.5, "longer": 5.0}
    configs = {}

    def note(args, *, kind):
        cfg, _ = kind.read(args.config_file, args.opts)
        name = Path(cfg.OUTPUT_DIR).name
        configs[name] = cfg
        length = cfg.SOLVER.MAX_ITER
        (output / name).mkdir(parents=True)
        time = {"iteration": length - 1, "time": seconds[name] / length}
        (output / name / "metrics.json").write_text(json.dumps(time) + "\n")
        entries = [{"iteration": length, "metric": "bbox/AP", "value": 10 * seconds[name]}]
        (output / name / "evaluations.json").write_text(json.dumps(entries))

    monkeypatch.setattr(pretraining, "train_or_skip", note)
    assert run("--iterations", 60, "OUTPUT_DIR", output) == 0
    assert list(configs) == ["classifier", "tuned", "scratch", "longer"]
    tuned, scratch, longer = (configs[n] for n in ("tuned", "scratch", "longer"))
    starts = [(c.MODEL.WEIGHTS, c.MODEL.RESNETS.NORM) for c in (tuned, scratch, longer)]
    assert starts == [
        (str(output / "classifier/model_final.pth"), "FrozenBN"),
        ("", "BN"),
        ("", "BN"),
    ]
    # 5 seconds with pre-training against 2.5 from scratch: twice the iterations
    lengths = [c.SOLVER.MAX_ITER for c in (tuned, scratch, longer)]
    assert lengths == [60, 60, 120]
    settings = [(c.INPUT.FORMAT, c.MODEL.PIXEL_MEAN, c.MODEL.PIXEL_STD) for c in configs.values()]
    assert all(s == settings[0] for s in settings)
    content = json.loads((output / "pretraining.json").read_text())
    assert content["pretraining_seconds"] == pytest.approx(2)
    assert [d["seconds"] for d in content["detectors"]] == pytest.approx([2.5, 5, 5])
    table = "\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    assert rows_of(table)[2] == ["from the classifier", "60", "5", "2", "30.0"]
    assert (output / "pretraining.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_tool_trains_all_of_it(tmp_path):
    """The detectors alone are short: the classifier's config has its own length, of a minute."""
    words = ("--iterations", 8, "OUTPUT_DIR", tmp_path / "output", "SOLVER.IMS_PER_BATCH", 4)
    words += ("TEST.NUM_IMAGES", 8)
    tool = REPO / "tools/pretrain_shapes.py"
    done = run_tool(tool, *words, datasets=tmp_path / "datasets", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (from [a-z, ]+?) +\| +(\d+) +\|", done.stdout, re.M)
    assert [name for name, _ in rows] == [c.name for c in CURVES]
    assert [int(n) for _, n in rows][::2] == [8, 8] and int(rows[1][1]) >= 8
    assert (tmp_path / "output/pretraining.png").is_file()
    log = (tmp_path / "output/tuned/log.txt").read_text()
    assert re.search(r"backbone: (\d+)/\1 tensors loaded; heads: 0/", log)
    again = run_tool(tool, "--resume", *words, datasets=tmp_path / "datasets", cwd=tmp_path)
    assert again.returncode == 0 and again.stdout.count("is finished: skipped") >= 3
