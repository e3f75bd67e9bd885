"""Fig. 7: its numbers, its table, its plot, and the command that trains all of it."""

import json
import math

import pytest
from matplotlib.figure import Figure
from PIL import Image

import resnext_det
from resnext_det.classification import figure7
from resnext_det.classification.figure7 import (
    Point,
    Template,
    count_parameters,
    draw,
    figure7_parser,
    format_points,
    make_figure7,
)
from resnext_det.engine import run_job
from resnext_det.errors import UserError
from tests.classification.classifiers import CLASSES, make_tree

FOUND = {  # not in the order of their sizes
    "cardinality": [
        Point("2x64d", 8_900_000, (5.0, 6.0, 7.0)),
        Point("1x64d", 4_700_000, (8.5, 8.5, 8.5)),
    ],
    "width": [
        Point("1x64d", 4_700_000, (8.5, 8.5, 8.5)),
        Point("1x96d", 9_100_000, (6.0, 9.0, 9.0)),
    ],
}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    drawn = []

    def make(*args, **kwargs):
        drawn.append(Figure(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(figure7, "Figure", make)
    return drawn


def test_means_and_their_standard_errors():
    point = FOUND["cardinality"][0]
    assert point.mean == 6.0
    assert point.standard_error == pytest.approx(1 / math.sqrt(3))  # the runs' deviation is 1
    same = FOUND["cardinality"][1]
    assert (same.mean, same.standard_error) == (8.5, 0)
    two = Point("1x4d", 1, (3.0, 5.0))  # deviation sqrt(2), of n - 1 = 1
    assert two.standard_error == pytest.approx(1.0)
    single = Point("1x4d", 1, (3.25,))
    assert (single.mean, single.standard_error) == (3.25, None)


def test_the_table_has_a_row_for_each_point_in_order_of_size():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in format_points(FOUND, 64).splitlines()
    ]
    assert rows[0] == [
        "series",
        "network",
        "parameters, M",
        "test error, %",
        "standard error",
        "runs",
    ]
    assert rows[2:] == [
        ["more paths, 64d each", "1x64d", "4.70", "8.50", "0.00", "3"],
        ["more paths, 64d each", "2x64d", "8.90", "6.00", "0.58", "3"],
        ["one path, wider", "1x64d", "4.70", "8.50", "0.00", "3"],
        ["one path, wider", "1x96d", "9.10", "8.00", "1.00", "3"],
    ]


def test_a_single_run_has_no_standard_error():
    points = {"cardinality": [Point("4x4d", 10**6, (20.0,))], "width": []}
    assert format_points(points, 4).splitlines()[-1].split("|")[5].strip() == "-"


def test_the_plot_shows_both_series(figures, tmp_path):
    draw(FOUND, 64, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG" and min(image.size) > 300
        assert len(image.convert("L").getcolors()) > 10
    (axes,) = figures[0].axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["more paths, 64d each", "one path, wider"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("parameters, millions", "test error, %")
    assert axes.get_title() == "mean of 3 runs, bars: standard error"
    lines = [container.lines[0] for container in axes.containers]
    assert [list(line.get_xdata()) for line in lines] == [[4.7, 8.9], [4.7, 9.1]]
    assert [list(line.get_ydata()) for line in lines] == [[8.5, 6.0], [8.5, 8.0]]
    (bars,) = axes.containers[1].lines[2]
    lowest, highest = bars.get_segments()[1][:, 1]
    assert (lowest, highest) == pytest.approx((7.0, 9.0))  # 8 plus and minus 1
    assert [t.get_text() for t in axes.texts] == ["1x64d", "2x64d", "1x64d", "1x96d"]


def test_the_plot_of_single_runs_says_so(figures, tmp_path):
    draw({"cardinality": [Point("4x4d", 10**6, (20.0,))], "width": []}, 4, tmp_path / "f.png")
    assert figures[0].axes[0].get_title() == "1 run"


def test_the_defaults_are_the_papers_series():
    args = figure7_parser().parse_args([])
    assert (args.cardinalities, args.width, args.runs) == ((1, 2, 4, 8, 16), 64, 10)
    cfg = resnext_det.get_cfg(args.config_file)

    def parameters(template):
        changed = cfg.clone()
        changed.merge_from_list(template.overrides)
        return count_parameters(changed)

    assert parameters(Template(8, 64)) == pytest.approx(34.4e6, abs=0.06e6)  # Table 7
    assert parameters(Template(16, 64)) == pytest.approx(68.1e6, abs=0.06e6)
    for cardinality, width in zip(args.cardinalities, args.widths, strict=True):
        deeper, wider = parameters(Template(cardinality, 64)), parameters(Template(1, width))
        assert wider == pytest.approx(deeper, rel=0.1)


# The command

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 11,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 4,
    "CLASSIFIER.NUM_CLASSES": len(CLASSES),
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": "()",
    "TEST.EVAL_PERIOD": 0,
}


@pytest.fixture
def data(tmp_path):
    for split, each in (("train", 2), ("test", 1)):
        make_tree(tmp_path / "data" / split, each=each)
    return tmp_path / "data"


def run(output, data, *words, series=("--cardinalities", 2, "--width", 2, "--widths", 4)):
    overrides = [word for pair in TINY.items() for word in pair]
    arguments = [*words, *series, "--data", data, "--runs", 2, *overrides, "OUTPUT_DIR", output]
    return run_job(make_figure7, figure7_parser().parse_args([str(a) for a in arguments]))


def test_all_networks_are_trained_and_a_second_command_goes_on(data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "output"
    train, left = figure7.train_or_skip, [3]

    def stop_after_three(args, **options):
        if not left[0]:
            raise InterruptedError
        left[0] -= 1
        return train(args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(figure7, "train_or_skip", stop_after_three)
        with pytest.raises(InterruptedError):
            run(output, data)
    assert not (output / "figure7.json").exists()

    assert run(output, data) == 1
    message = f"error: OUTPUT_DIR {output} holds a run already: go on with it by --resume"
    assert message in capsys.readouterr().err

    finished = [
        output / run / "model_final.pth" for run in ("2x2d/seed1", "2x2d/seed2", "1x4d/seed1")
    ]
    before = [file.stat().st_mtime_ns for file in finished]
    assert run(output, data, "--resume") == 0
    assert [file.stat().st_mtime_ns for file in finished] == before
    printed = capsys.readouterr().out
    assert printed.count("is finished: skipped") == 3
    assert "was run with another config" not in printed

    content = json.loads((output / "figure7.json").read_text())
    assert [[p["network"] for p in content[s]] for s in ("cardinality", "width")] == [
        ["2x2d"],
        ["1x4d"],
    ]
    for (point,) in content.values():
        folders = [output / point["network"] / f"seed{n}" for n in (1, 2)]
        results = [json.loads((f / "results.json").read_text())["classification"] for f in folders]
        errors = [r["top1_error"] for r in results]
        assert point["errors"] == errors
        assert point["mean"] == pytest.approx(sum(errors) / 2)
        assert point["standard_error"] == pytest.approx(abs(errors[0] - errors[1]) / 2)
        assert f"| {point['network']} " in printed and f"{point['mean']:.2f}" in printed
        for seed, folder in enumerate(folders, 1):
            assert f"SEED: {seed}\n" in (folder / "config.yaml").read_text()
    with Image.open(output / "figure7.png") as image:
        assert image.format == "PNG"


def test_finished_runs_of_other_settings_are_named(data, tmp_path, monkeypatch, capsys):
    output, series = tmp_path / "output", ("--cardinalities", "2", "--width", 2, "--widths", 2)
    assert run(output, data, series=series) == 0
    capsys.readouterr()
    assert run(output, data, "--resume", series=series) == 0
    assert "another config" not in capsys.readouterr().out
    monkeypatch.setitem(TINY, "SOLVER.BASE_LR", 0.5)
    assert run(output, data, "--resume", series=series) == 0
    printed = capsys.readouterr().out
    assert "2x2d/seed1 was run with another config, and is not run again:" in printed
    assert "-> 0.5" in printed


def test_a_network_of_both_series_is_trained_once(data, tmp_path, monkeypatch):
    trained = []

    def note(args, **options):
        cfg, _ = options["kind"].read(args.config_file, args.opts)
        sizes = (cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP)
        trained.append((*sizes, cfg.SEED, *cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR))
        return {"classification": {"top1_error": float(len(trained))}}

    monkeypatch.setattr(figure7, "train_or_skip", note)
    output = tmp_path / "output"
    series = ("--cardinalities", "1,2", "--width", 2, "--widths", "2,4")
    assert run(output, data, series=series) == 0
    assert trained == [
        (c, d, seed, str(data), str(output / f"{c}x{d}d" / f"seed{seed}"))
        for c, d in ((1, 2), (2, 2), (1, 4))
        for seed in (1, 2)
    ]
    content = json.loads((output / "figure7.json").read_text())
    errors = {name: [p["errors"] for p in points] for name, points in content.items()}
    assert errors == {"cardinality": [[1, 2], [3, 4]], "width": [[1, 2], [5, 6]]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", 0], "--runs 0: at least 1"),
        (["--eval-only"], "--eval-only: the figure needs training; --resume skips finished runs"),
        (
            ["--cardinalities", 0, "--width", 4],
            "MODEL.RESNETS names no network: cardinality and width are at",
        ),
        (
            ["--widths=-4"],
            "MODEL.RESNETS names no network: cardinality and width are at least 1",
        ),
        (["--config-file", "quick/faster_rcnn_X26_8x4d_FPN"], "is no ImageClassifier: train it"),
        (["--widths", "4", "8"], "'8' is no config key: overrides are KEY VALUE pairs"),
        (["SOLVER.MAX_ITERS", 5], "unknown config key 'SOLVER.MAX_ITERS'; did you mean"),
    ],
)
def test_mistakes_are_one_line_before_any_training(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figure7, "train_or_skip", lambda *_, **__: pytest.fail("trained"))
    arguments = [str(w) for w in (*words, "OUTPUT_DIR", tmp_path / "output")]
    assert run_job(make_figure7, figure7_parser().parse_args(arguments)) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_overrides_follow_lists_of_numbers(capsys):
    args = figure7_parser().parse_args(["--cardinalities", "1,8,1", "--widths", "18", "SEED", "3"])
    assert (args.cardinalities, args.widths, args.opts) == ((1, 8), (18,), ["SEED", "3"])
    with pytest.raises(SystemExit):
        figure7_parser().parse_args(["--widths", "18,wide"])
    assert "argument --widths: '18,wide' is not whole numbers" in capsys.readouterr().err


def test_a_run_that_was_stopped_leaves_no_figure(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figure7, "train_or_skip", lambda *_, **__: {})  # as after a signal
    assert run(tmp_path / "output", data) == 1
    assert "did not come to its end, so the figure is not whole" in capsys.readouterr().err
    assert not (tmp_path / "output/figure7.json").exists()


def test_a_plot_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="absent"):
        draw(FOUND, 64, tmp_path / "absent" / "figure7.png")
