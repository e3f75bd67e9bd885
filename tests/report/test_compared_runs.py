import json

import pytest

from resnext_det.errors import UserError
from resnext_det.report import write_comparison
from tests.helpers import REPO, run_tool
from tests.report.runs import CLASSES, START, Page, evaluation, write_data, write_run


@pytest.fixture
def two(tmp_path):
    """Two runs on the same data, and the figures of each."""
    data = {"custom_val": write_data(tmp_path / "data")}
    contents = [evaluation(seed=seed) for seed in (0, 1)]
    runs = [
        write_run(tmp_path / name, data, {"custom_val": content}, overrides=overrides)
        for name, content, overrides in zip(
            ("first", "second<b>"), contents, ((), ("SOLVER.MAX_ITER", 7)), strict=True
        )
    ]
    return runs, contents


def test_figures_and_classes_stand_with_their_differences(two, tmp_path):
    runs, contents = two
    page = Page(write_comparison(runs, tmp_path / "c.html"))
    a, b = (content["tasks"]["bbox"] for content in contents)
    for label in ("AP", "AP50", "ARl"):
        first, second = a["figures"][label], b["figures"][label]
        change = f"{second - first:+.1f}".replace("-", "\N{MINUS SIGN}")
        assert page.rows_named(label) == [[f"{first:.1f}", f"{second:.1f} {change}"]]
    for first, second in zip(a["classes"], b["classes"], strict=True):
        change = f"{second['AP'] - first['AP']:+.1f}".replace("-", "\N{MINUS SIGN}")
        assert page.rows_named(first["name"]) == [
            [f"{first['AP']:.1f}", f"{second['AP']:.1f} {change}"]
        ]
    assert page.rows_named("SOLVER.MAX_ITER") == [["800", "7"]]
    assert not page.rows_named("SOLVER.BASE_LR") and not page.rows_named("OUTPUT_DIR")
    assert "second<b>" in page.text


def test_what_makes_runs_not_comparable_is_said(tmp_path):
    one, other = write_data(tmp_path / "1"), write_data(tmp_path / "2")
    a = write_run(tmp_path / "a", {"one": one}, {"one": evaluation(dataset="one")})
    b = write_run(
        tmp_path / "b",
        {"one": one, "other": other},
        {"one": {**evaluation(dataset="one"), "images": 2}, "other": evaluation(dataset="other")},
        trained=False,
    )
    page = Page(write_comparison([a, b], tmp_path / "c.html"))
    assert "a: not evaluated on other." in page.text
    assert "one: the runs differ in images (4, 2)." in page.text
    assert page.rows_named("AP")[1][0] == "n/a"


@pytest.mark.parametrize(
    ("classes", "seed", "note"),
    [
        (CLASSES, 0, None),
        (CLASSES, 1, "boxes were tested on other classes, or on other numbers of objects"),
        (CLASSES[::-1], 0, "boxes were tested on other classes"),
    ],
)
def test_other_data_under_one_name_is_said(classes, seed, note, tmp_path):
    data = {"custom_val": write_data(tmp_path / "data")}
    runs = []
    for name, content in (("a", evaluation()), ("b", evaluation(classes, seed=seed))):
        runs.append(write_run(tmp_path / name, data, {"custom_val": content}))
    page = Page(write_comparison(runs, tmp_path / "c.html"))
    assert ("differ under one name" in page.text) is (note is not None)
    assert note is None or f"custom_val: {note}" in page.text


def test_other_annotation_files_are_said(tmp_path):
    data = {"custom_val": write_data(tmp_path / "data")}
    runs = [write_run(tmp_path / n, data, {"custom_val": evaluation()}) for n in "abc"]
    for run, digest in zip(runs, ("feed", "f00d", None), strict=True):
        sums = {"custom_val": {"annotation_file": "val.json", "sha256": digest}} if digest else {}
        earlier = {**START, "datasets": {"custom_val": {"sha256": "01d"}}}
        (run / "run.json").write_text(json.dumps([earlier, {**START, "datasets": sums}]))
    page = Page(write_comparison(runs, tmp_path / "c.html"))
    assert "the runs' annotation files differ (sha256 feed, f00d)" in page.text
    page = Page(write_comparison(runs[1:], tmp_path / "c.html"))  # of one it is not known
    assert "annotation files differ" not in page.text


def test_a_class_and_a_figure_that_one_run_lacks_are_not_available(tmp_path):
    data = {"custom_val": write_data(tmp_path / "data")}
    a, b = evaluation(), evaluation(("circle", "moon"))
    del b["tasks"]["bbox"]["figures"]["APl"]
    runs = [write_run(tmp_path / n, data, {"custom_val": c}) for n, c in (("a", a), ("b", b))]
    page = Page(write_comparison(runs, tmp_path / "c.html"))
    assert page.rows_named("moon")[0][0] == "n/a" and page.rows_named("star")[0][1] == "n/a"
    assert page.rows_named("APl")[0][1] == "n/a"


def test_the_same_runs_give_the_same_bytes(two, tmp_path):
    pages = [write_comparison(two[0], tmp_path / f"{i}.html").read_bytes() for i in range(2)]
    assert pages[0] == pages[1]


def test_a_run_beside_itself_is_refused(two, tmp_path):
    with pytest.raises(UserError, match="named twice"):
        write_comparison([two[0][0], two[0][0]], tmp_path / "c.html")


def test_the_tool_compares(two, tmp_path):
    tool = REPO / "tools/report.py"
    done = run_tool(tool, *two[0], datasets=tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "wrote comparison.html\n"), done.stderr
    assert (tmp_path / "comparison.html").is_file()
