import json
import subprocess
import sys

import pytest

from tests.evaluation.coco_sets import judge, make_set, write_set
from tests.helpers import REPO

TOOL = REPO / "tools/evaluate_results.py"


def run(*words, cwd):
    command = [sys.executable, TOOL, *words]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def files(tmp_path):
    content, results = make_set(0, images=10)
    for row in results:
        del row["keypoints"]
    return content, results, *write_set(tmp_path, content, results)


def test_it_prints_figures_and_classes_and_writes_both_files(files, tmp_path):
    content, results, annotations, file = files
    done = run(
        *(file, "--annotations", annotations, "--tasks", "segm", "--score", "0.3"),
        *("--output", tmp_path / "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    ap = 100 * judge(content, results, "segm").stats[0]
    assert f"segm: AP {ap:.2f}" in done.stdout
    assert "bbox" not in done.stdout
    assert "precision" in done.stdout and "class 10" in done.stdout
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert evaluation["tasks"]["segm"]["figures"]["AP"] == pytest.approx(ap, abs=1e-6)
    assert evaluation["score"] == 0.3
    assert "class 3" in json.loads((tmp_path / "out/results.json").read_text())["segm"]["per_class"]


def test_a_run_of_ones_own_data_names_the_ground_truth(files, tmp_path):
    """As tools/train_net.py leaves it: a config.yaml beside a record of the data."""
    from resnext_det.data.custom import CustomData, keep_with_run

    content, results, annotations, file = files
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text('VERSION: 2\nDATASETS:\n  TEST: ["custom_val"]\n')
    data = {"custom_val": CustomData.read(str(annotations), str(tmp_path))}
    keep_with_run(tmp_path / "nowhere", data, tmp_path / "run")
    done = run(file, "--config-file", "run/config.yaml", "--limit", "10", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"bbox: AP {100 * judge(content, results, 'bbox').stats[0]:.2f}" in done.stdout
    assert "over the first 10 images alone" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("absent.json", "--annotations", "truth.json"), "absent.json cannot be read: No such"),
        (("results.json", "--annotations", "absent.json"), "absent.json cannot be read: No such"),
        (("results.json", "--annotations", "results.json"), "is not a COCO annotation file"),
        (("truth.json", "--annotations", "truth.json"), "truth.json holds no list of detections"),
        (("results.json", "--config-file", "absent.yaml"), "absent.yaml' does not exist"),
        (("results.json", "--config-file", "two.yaml"), "the config has 2 test sets (a, b)"),
        (("results.json", "--config-file", "one.yaml"), "dataset nowhere is not registered"),
        (("results.json", "--annotations", "truth.json", "--limit", "-1"), "--limit -1 is no num"),
        (("results.json", "--annotations", "truth.json", "--tasks", "keypoints"), "no 'keypoints'"),
        (("results.json", "--annotations", "truth.json", "--output", "truth.json"), "--output tru"),
    ],
)
def test_a_mistake_is_one_line(files, tmp_path, words, message):
    (tmp_path / "two.yaml").write_text('VERSION: 2\nDATASETS:\n  TEST: ["a", "b"]\n')
    (tmp_path / "one.yaml").write_text('VERSION: 2\nDATASETS:\n  TEST: ["nowhere"]\n')
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
