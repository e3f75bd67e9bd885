"""Table 8: the figures that it reads, compares and prints, and the four rows that it trains."""

import json
import math

import pytest

import resnext_det
from resnext_det.data import shapes
from resnext_det.engine import run_job, table8
from resnext_det.engine.resumable import read_results
from resnext_det.engine.table8 import format_table8, make_table8, table8_parser
from resnext_det.modeling import variant_from_config

QUICK = ["X50_1x16d", "X50_4x6d", "X101_1x16d", "X101_4x6d"]


def run(*words):
    return run_job(make_table8, table8_parser().parse_args([str(w) for w in words]))


def finished_run(folder, ap50, ap, *, test="coco_minival", task="bbox"):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({task: {"AP50": ap50, "AP": ap}}))
    (folder / "config.yaml").write_text(f"DATASETS:\n  TEST:\n  - {test}\n")
    return folder


def cells(printed, row):
    (line,) = [line for line in printed.split("\n") if line.strip().startswith(row)]
    return line.strip().removeprefix(row).split()


def test_finished_runs_stand_beside_the_papers_figures(tmp_path, capsys):
    r50 = finished_run(tmp_path / "r50", 40.04, 20.0)
    x50 = finished_run(tmp_path / "x50/fast_rcnn", 42.54, 21.06).parent  # of two steps
    x101 = finished_run(tmp_path / "x101", 50.0, None)
    file = tmp_path / "table.json"
    runs = (f"R50={r50}", f"X50_32x4d={x50}", f"X101_32x4d={x101}")
    assert run("--json", file, "--runs", *runs) == 0
    printed = capsys.readouterr().out
    assert cells(printed, "ResNet-50 1x64d") == ["40.0", "47.6", "20.0", "26.5"]
    assert cells(printed, "ResNeXt-50 32x4d") == ["42.5", "49.7", "21.1", "27.5"]
    assert cells(printed, "ResNet-101 1x64d") == ["n/a", "51.1", "n/a", "29.8"]
    assert cells(printed, "ResNeXt-101 32x4d") == ["50.0", "51.9", "n/a", "30.0"]
    assert cells(printed, "ResNeXt minus ResNet, 50") == ["+2.5", "+2.1", "+1.1", "+1.0"]
    assert cells(printed, "ResNeXt minus ResNet, 101") == ["n/a", "+0.8", "n/a", "+0.2"]
    assert "toy" not in printed
    content = json.loads(file.read_text())
    assert content["rows"]["R101"]["measured"] == {"AP50": None, "AP": None}
    assert content["rows"]["X50_32x4d"]["measured"] == {"AP50": 42.54, "AP": 21.06}
    assert content["resnext_minus_resnet"]["50"] == {
        "measured": {"AP50": 2.5, "AP": 1.06},
        "paper": {"AP50": 2.1, "AP": 1.0},
    }


def test_a_run_on_other_data_is_said(tmp_path, capsys):
    folder = finished_run(tmp_path / "r50", 90.0, 80.0, test="shapes_minival")
    assert run("--runs", f"R50={folder}") == 0
    assert f"{folder} was tested on shapes_minival, not on coco_minival" in capsys.readouterr().out


def test_quick_figures_stand_alone():
    table = format_table8({"R50": {"AP50": 1.0, "AP": 0.5}}, quick=True)
    assert "paper" not in table
    assert cells(table, "X50_1x16d") == ["1.0", "0.5"]
    assert cells(table, "X101_4x6d") == ["n/a", "n/a"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "R51=x"], "--runs R51=x: write ROW=FOLDER, ROW one of R50, X50_32x4d, R101"),
        (["--runs", "R50"], "--runs R50: write ROW=FOLDER"),
        (["--runs", "R50={0}/absent"], "{0}/absent/results.json is not readable"),
        (["--runs", "R50={0}/ok", "R50={0}/ok"], "--runs: R50 is there twice"),
        (["--runs", "R50={0}/rpn"], "{0}/rpn/results.json has no box AP of one test set"),
        (
            ["--json", "{0}/no/file", "--runs", "R50={0}/ok"],
            "--json {0}/no/file: its folder does not exist",
        ),
        (["--quick", "SOLVER.MAXITER", "3"], "unknown config key 'SOLVER.MAXITER'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, words, message):
    finished_run(tmp_path / "ok", 1.0, 0.5)
    finished_run(tmp_path / "rpn", 1.0, 0.5, task="box_proposals")
    assert run(*(w.replace("{0}", str(tmp_path)) for w in words)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message.replace("{0}", str(tmp_path)) in error
    assert error.count("\n") == 1


def test_null_in_results_is_read_as_not_a_number(tmp_path):
    results = read_results(finished_run(tmp_path / "a", 1.0, None))
    assert results["bbox"]["AP50"] == 1.0
    assert math.isnan(results["bbox"]["AP"])


def test_quick_pairs_preserve_complexity_by_eqn_4():
    weights = []
    for name in QUICK:
        cfg = resnext_det.get_cfg(f"quick/table8/faster_rcnn_{name}_FPN")
        variant = variant_from_config(cfg)
        assert str(variant) == "X-" + name[1:].replace("_", "-")
        c, d, out = variant.cardinality, variant.width, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
        weights.append(c * (out * d + 9 * d * d + d * out))
    assert weights == [4352, 4368] * 2


def test_the_default_and_the_two_step_rows_have_configs():
    rows = [row.name for row in table8.ROWS]
    assert rows == ["R50", "X50_32x4d", "R101", "X101_32x4d"]
    for flags, count in (([], 1), (["--two-step"], 2), (["--quick"], 1)):
        args = table8_parser().parse_args(flags)
        for row in table8.ROWS:
            names = table8._config_names(row, args)
            assert len(names) == count
            for name in names:
                assert resnext_det.get_cfg(name).MODEL.BACKBONE.NAME.startswith("build_resnext")


def test_four_quick_rows_train_and_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 4, "shapes_minival": 2})
    output = tmp_path / "output"
    words = ("SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 1, "INPUT.MIN_SIZE_TRAIN", "(64,)")
    words += ("INPUT.MIN_SIZE_TEST", 64, "TEST.EVAL_PERIOD", 0, "OUTPUT_DIR", output)
    train = table8.train_or_skip

    def stop_at_the_third(args):
        if args.opts[-1].endswith("R101"):
            raise InterruptedError
        return train(args)

    with monkeypatch.context() as patch:
        patch.setattr(table8, "train_or_skip", stop_at_the_third)
        with pytest.raises(InterruptedError):
            run("--quick", *words)
    assert run("--quick", *words) == 1
    assert f"error: OUTPUT_DIR {output} holds a run already" in capsys.readouterr().err
    assert run("--quick", "--resume", "--json", tmp_path / "t.json", *words) == 0
    printed = capsys.readouterr().out
    assert printed.count("is finished: skipped") == 2
    assert "figures of toy data" in printed
    assert "comparable only among themselves" in printed
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    for name, quick in zip(rows, QUICK, strict=True):
        results = json.loads((output / name / "results.json").read_text())
        assert rows[name]["network"] == quick
        assert rows[name]["measured"]["AP"] == pytest.approx(results["bbox"]["AP"], abs=1e-4)
        assert cells(printed, quick)[0] == f"{results['bbox']['AP50']:.1f}"


def test_two_step_rows_train_and_their_figures_are_the_fast_rcnns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 4, "shapes_minival": 2})
    output = tmp_path / "output"
    words = (
        "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.DEPTH", 26,
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
        "MODEL.RESNETS.NUM_GROUPS", 1, "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
        "MODEL.ROI_HEADS.NUM_CLASSES", 5, "FAST:MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4,
        "MODEL.RPN.POST_NMS_TOPK_TEST", 5, "DATASETS.TRAIN", "('shapes_train',)",
        "DATASETS.TEST", "('shapes_minival',)", "DATALOADER.NUM_WORKERS", 0,
        "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 1,
        "SOLVER.MAX_ITER", 1, "RPN:SOLVER.MAX_ITER", 2, "OUTPUT_DIR", output,
    )  # fmt: skip
    assert run("--two-step", *words) == 0
    printed = capsys.readouterr().out
    assert "Table 8, COCO minival, two steps, in percent" in printed
    for row in table8.ROWS:
        folder = output / row.name / "fast_rcnn"
        bbox = json.loads((folder / "results.json").read_text())["bbox"]
        assert cells(printed, row.network)[::2] == [f"{bbox[m]:.1f}" for m in ("AP50", "AP")]
