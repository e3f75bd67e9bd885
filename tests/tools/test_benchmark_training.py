"""The benchmark of training: both sides train in turn, to the same losses."""

from tests.helpers import REPO, run_tool


def test_it_prints_ratios_and_both_sides_have_the_same_losses(tmp_path):
    words = ("--size", "64", "--batch", "1", "--iterations", "3", "--runs", "1")
    done = run_tool(REPO / "tools/benchmark_training.py", *words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("Detectron2", "ours"))]
    rows = {name: line.split()[-7:] for line in lines for name in [line[:14].strip()]}
    assert set(rows) == {"Detectron2", "ours, float32", "ours, bfloat16"}
    for name, cells in rows.items():
        *_, iteration, ratio, _, difference = cells
        assert float(iteration) > 0
        at_most = {"Detectron2": 0.0, "ours, float32": 1e-4, "ours, bfloat16": 0.05}[name]
        assert float(difference) <= at_most
        assert float(ratio) > 0
    assert float(rows["Detectron2"][-3]) == 1
