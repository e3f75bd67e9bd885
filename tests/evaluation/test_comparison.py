import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnext_det.errors import UserError
from resnext_det.evaluation.comparison import (
    compare_runs,
    distinct_names,
    format_comparison,
    plot_comparison,
    read_runs,
)
from resnext_det.evaluation.training import read_metrics
from tests.helpers import REPO, run_tool


def write_run(folder, length=60, *, loss=2.0, ap=None, more=(), cut=""):
    """A run that reports every 20 iterations, and is evaluated as `ap` says by iteration."""
    folder.mkdir(parents=True)
    rows = [
        {"iteration": i, "total_loss": loss / (i + 1), "lr": 0.01, **dict(more)}
        for i in range(19, length, 20)
    ]
    rows += [{"iteration": i, "bbox/AP": value} for i, value in (ap or {}).items()]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.json").write_text(text + cut)
    return folder


def test_runs_of_all_kinds_become_one_picture(tmp_path):
    runs = [
        write_run(tmp_path / "a", ap={40: 10.0, 60: 12.5}, more={"images_per_second": 3.0}),
        write_run(tmp_path / "b", length=200, loss=1.0),
        write_run(tmp_path / "c", length=20, ap={20: float("nan")}),
    ]
    png = tmp_path / "comparison.png"
    table = compare_runs(runs, png)
    assert np.asarray(Image.open(png)).std() > 10
    header, _, *rows = [line.split() for line in table.splitlines()]
    assert header == ["run", "iteration", "total", "loss", "best", "bbox", "AP", "at"]
    assert rows == [
        ["a", "60", "0.03333", "12.50", "60"],
        ["b", "199", "0.005", "n/a", "n/a"],
        ["c", "20", "0.1", "n/a", "n/a"],
    ]


def test_each_run_has_a_colour_of_its_own(tmp_path):
    colours = {}
    for name, number in (("alone", 1), ("both", 2)):
        folders = [write_run(tmp_path / name / str(i), loss=10.0**i) for i in range(number)]
        plot_comparison(read_runs(folders), tmp_path / f"{name}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).reshape(-1, 3)
        colours[name] = [(np.abs(pixels - np.array(c)).sum(1) < 60).sum() for c in BLUE_AND_ORANGE]
    assert colours["alone"][0] > 100 > colours["alone"][1]
    assert min(colours["both"]) > 100


BLUE_AND_ORANGE = ((31, 119, 180), (255, 127, 14))


def test_the_best_evaluation_is_the_first_of_the_highest(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "a", ap={20: 5.0, 40: 9.0, 60: 9.0})])
    assert run.best("bbox/AP") == (40, 9.0)


def test_masks_and_keypoints_are_compared_where_a_run_has_them(tmp_path):
    first = write_run(tmp_path / "a", ap={60: 9.0})
    with (first / "metrics.json").open("a") as file:
        file.write('{"iteration": 60, "segm/AP": 8.0, "keypoints/AP": 7.0}\n')
    table = format_comparison(read_runs([first, write_run(tmp_path / "b", ap={60: 1.0})]))
    assert "best segm AP" in table and "best keypoints AP" in table
    assert table.splitlines()[-1].split() == ["b", "60", "0.03333", "1.00", "60", *4 * ["n/a"]]


def test_classifiers_are_compared_by_their_accuracy(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    with (runs[0] / "metrics.json").open("a") as file:
        file.write('{"iteration": 40, "classification/accuracy": 81.5}\n')
        file.write('{"iteration": 60, "classification/accuracy": 80.25}\n')
    header, _, first, second = compare_runs(runs, tmp_path / "c.png").splitlines()
    assert header.split()[-3:] == ["best", "accuracy", "at"]
    assert first.split()[-2:] == ["81.50", "40"]
    assert second.split()[-2:] == ["n/a", "n/a"]


def test_the_same_run_counts_once(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert [r.name for r in read_runs([run, Path("a"), Path("a/../a")])] == ["a"]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/o/x50", "/o/r50"], ["x50", "r50"]),
        (["/o/x50/run", "/o/r50/run"], ["x50/run", "r50/run"]),
        (["/o/a/run", "/p/a/run", "/p/b/run"], ["o/a/run", "p/a/run", "p/b/run"]),
        (["/run", "/a/run"], ["/run", "a/run"]),
    ],
)
def test_names_are_the_shortest_that_differ(folders, names):
    assert distinct_names([Path(folder) for folder in folders]) == names


def test_a_run_that_was_killed_while_it_wrote_is_read_without_its_last_line(tmp_path):
    run = write_run(tmp_path / "a", cut='{"iteration": 79, "total_lo')
    assert [row["iteration"] for row in read_metrics(run / "metrics.json")] == [19, 39, 59]


@pytest.mark.parametrize(
    "text",
    ['{"iteration": 1, "to\n{"iteration": 2}\n', '{"iteration": 1, "to\n', "[1]\n", '{"lr": 1}\n'],
)
def test_a_damaged_line_elsewhere_is_an_error(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}/metrics.json is not a readable metrics.json"):
        read_metrics(tmp_path / "metrics.json")


def test_a_run_without_metrics_is_named_in_one_line_and_nothing_is_written(tmp_path):
    write_run(tmp_path / "a")
    words = (REPO / "tools/plot_run.py", "a", "b")
    done = run_tool(*words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: b/metrics.json is not a readable metrics.json: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_tool_prints_the_table_and_the_picture(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    words = (REPO / "tools/plot_run.py", "a", "b", "--output", "two.png")
    done = run_tool(*words, datasets=tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("run")
    assert done.stdout.endswith("\nwrote two.png\n")
    assert (tmp_path / "two.png").is_file()


@pytest.mark.parametrize(
    ("output", "message"),
    [("a.txt", "name a .png file"), ("nowhere/a.png", "nowhere/a.png cannot be written")],
)
def test_a_picture_that_cannot_be_written_is_named(tmp_path, monkeypatch, output, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        compare_runs([write_run(tmp_path / "a")], Path(output))


def test_runs_with_nothing_to_draw_are_named(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n')
    with pytest.raises(UserError, match="no loss, rate or evaluation"):
        compare_runs([tmp_path], tmp_path / "a.png")
