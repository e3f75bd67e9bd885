"""The benchmark of evaluations: what it compares gives the same figures."""

import json

import pytest

from tests.helpers import REPO, run_tool


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_all_that_is_timed_gives_the_same_figures(tmp_path, task):
    words = ("--images", "20", "--rounds", "1", "--task", task, "--json", "b.json")
    tool = REPO / "tools/benchmark_evaluation.py"
    done = run_tool(tool, *words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "b.json").read_text())["results"]
    assert len(results) >= 3
    assert results[0]["name"].startswith("pycocotools")
    for each in results[1:]:
        assert each["difference"] < 1e-6
        assert each["median_s"] > 0
