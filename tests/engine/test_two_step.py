"""The paper's two-step detector: configs, proposals, and a run that goes on where it stopped."""

import json
import pickle
import re

import pytest
import torch
from detectron2.config import get_cfg as get_stock_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.build import load_proposals_into_dataset
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import resnext_det
from resnext_det.config import config_path, load_config
from resnext_det.data import shapes
from resnext_det.engine import Trainer, format_results, proposals, run_job
from resnext_det.engine.two_step import overrides_for, train_two_step, two_step_parser

ROWS = ["R50", "X50_32x4d", "R101", "X101_32x4d"]
TRAINED = 3  # iterations of each step below
SMALL = {
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 26,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.NUM_GROUPS": 2,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 2,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 32]],
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 2,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "MODEL.ROI_HEADS.NUM_CLASSES": 5,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
    "DATASETS.TRAIN": ("shapes_train",),
    "DATASETS.TEST": ("shapes_minival",),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": TRAINED,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.BASE_LR": 1e-4,
    "SEED": 1,
}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Run both steps on a handful of shapes; returns the exit status."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 8, "shapes_minival": 4})

    def run(*flags, words=(), rpn="paper/rpn_X50_32x4d", fast="paper/fast_rcnn_X50_32x4d"):
        command = ["--rpn-config", rpn, "--fast-rcnn-config", fast, *flags]
        for key, value in {**SMALL, "OUTPUT_DIR": tmp_path / "output"}.items():
            command += [key, str(value)]
        return run_job(train_two_step, two_step_parser().parse_args([*command, *words]))

    return run


def small_rpn_config():
    words = [word for pair in SMALL.items() for word in map(str, pair)]
    return load_config("paper/rpn_X50_32x4d", [*words, "MODEL.DEVICE", "cpu"])


def stop(*args, **kwargs):
    raise InterruptedError("stopped by the test")


def stop_training_at(iteration, monkeypatch, folder):
    """Break off the run in `folder` before its iteration `iteration`, counted from 0."""
    run_step = Trainer.run_step

    def stopping(trainer):
        if trainer.iter == iteration and trainer.cfg.OUTPUT_DIR.endswith(folder):
            stop()
        run_step(trainer)

    monkeypatch.setattr(Trainer, "run_step", stopping)


def written_at(*files):
    return [file.stat().st_mtime_ns for file in files]


def test_both_steps_leave_runs_and_proposals(job, tmp_path, capsys):
    assert job() == 0
    output = tmp_path / "output"
    results = json.loads((output / "fast_rcnn/results.json").read_text())
    assert 0 <= results["bbox"]["AP"] <= results["bbox"]["AP50"] <= 100
    recall = json.loads((output / "rpn/results.json").read_text())["box_proposals"]
    assert 0 <= recall["AR@100"] <= recall["AR@1000"] <= 100
    for step in ("rpn", "fast_rcnn"):
        content = torch.load(output / step / "model_final.pth", weights_only=True)
        assert content["iteration"] == TRAINED - 1
        kinds = {name.split(".")[0] for name in content["model"]}
        head = {"rpn": "proposal_generator", "fast_rcnn": "roi_heads"}[step]
        assert kinds == {"backbone", head}
    printed = capsys.readouterr().out
    assert [s for s in "123" if f"step {s} of 3" in printed] == ["1", "2", "3"]
    assert printed.count("step 3 of 3") == 1  # one console handler, although three jobs logged
    assert not list((output / "proposals").glob(".*"))


def test_proposals_are_the_rpns_in_pixels_of_the_original_image(job, tmp_path):
    assert job() == 0
    output = tmp_path / "output"
    cfg = small_rpn_config()
    for name, per_image in (("shapes_train", 20), ("shapes_minival", 10)):
        file = output / f"proposals/{name}.pkl"
        content = pickle.loads(file.read_bytes())
        plain = DatasetCatalog.get(name)
        assert sorted(content["ids"]) == sorted(r["image_id"] for r in plain)
        assert len(content["boxes"]) == len(content["objectness_logits"]) == len(plain)
        records = load_proposals_into_dataset(plain, str(file))
        assert {r["proposal_bbox_mode"] for r in records} == {BoxMode.XYXY_ABS}
        assert max(len(r["proposal_boxes"]) for r in records) == per_image
        assert max(r["proposal_boxes"].max() for r in records) > 100  # 64 at the network's input
        assert all(b >= 0 for r in records for b in r["proposal_boxes"].reshape(-1))

        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = per_image
        model = build_model(cfg).eval()
        weights = torch.load(output / "rpn/model_final.pth", weights_only=True)["model"]
        model.load_state_dict(weights)
        record = records[-1]
        image = Image.open(record["file_name"]).convert("RGB").resize((64, 64), Image.BILINEAR)
        with torch.no_grad():
            (found,) = model([{"image": pil_to_tensor(image), "height": 64, "width": 64}])
        expected = found["proposals"]
        torch.testing.assert_close(
            torch.from_numpy(record["proposal_boxes"] / 2), expected.proposal_boxes.tensor
        )
        torch.testing.assert_close(
            torch.from_numpy(record["proposal_objectness_logits"]), expected.objectness_logits
        )


def test_fast_rcnn_trains_and_tests_on_these_files(job, tmp_path):
    assert job() == 0
    cfg = resnext_det.get_cfg()
    cfg.merge_from_file(str(tmp_path / "output/fast_rcnn/config.yaml"))
    folder = tmp_path / "output/proposals"
    assert (str(folder / "shapes_train.pkl"),) == cfg.DATASETS.PROPOSAL_FILES_TRAIN
    assert (str(folder / "shapes_minival.pkl"),) == cfg.DATASETS.PROPOSAL_FILES_TEST
    log = (tmp_path / "output/fast_rcnn/log.txt").read_text()
    assert len(re.findall(r"Loading proposals from: \S*shapes_(?:train|minival)\.pkl", log)) == 2


@pytest.mark.parametrize("step", ["rpn", "fast_rcnn"])
def test_a_training_broken_off_goes_on_at_its_checkpoint(job, tmp_path, monkeypatch, step, capsys):
    output = tmp_path / "output"
    with monkeypatch.context() as patch:
        stop_training_at(2, patch, step)
        with pytest.raises(InterruptedError):
            job()
    assert not (output / step / "model_final.pth").exists()
    done = [output / "rpn/model_final.pth", *sorted((output / "proposals").glob("*.pkl"))]
    done = done if step == "fast_rcnn" else []
    before = written_at(*done)
    capsys.readouterr()
    assert job("--resume") == 0
    printed = capsys.readouterr().out
    assert f"{step}/model_0000001.pth at iteration 2 of {TRAINED}" in printed.replace("\n", "")
    assert printed.count("is finished: skipped") == len(done)
    assert written_at(*done) == before
    assert (output / "fast_rcnn/results.json").is_file()


def test_proposals_broken_off_are_written_anew_and_the_rest_is_kept(job, tmp_path, monkeypatch):
    output = tmp_path / "output"
    dump = proposals._dump

    def stop_in_the_middle(content, path):
        dump(content, path)
        if path.name == ".shapes_minival.pkl":
            path.write_bytes(path.read_bytes()[:100])
            stop()

    with monkeypatch.context() as patch:
        patch.setattr(proposals, "_dump", stop_in_the_middle)
        with pytest.raises(InterruptedError):
            job()
    assert not (output / "proposals/shapes_minival.pkl").exists()
    done = [output / "rpn/model_final.pth", output / "proposals/shapes_train.pkl"]
    before = written_at(*done)
    assert job("--resume") == 0
    assert written_at(*done) == before
    whole = pickle.loads((output / "proposals/shapes_minival.pkl").read_bytes())
    assert len(whole["ids"]) == 4


def test_an_evaluation_broken_off_is_done_without_training(job, tmp_path, monkeypatch, capsys):
    output = tmp_path / "output"
    test = Trainer.test

    def stopping(cfg, model, evaluators=None):
        return stop() if cfg.OUTPUT_DIR.endswith("fast_rcnn") else test(cfg, model, evaluators)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "test", staticmethod(stopping))
        with pytest.raises(InterruptedError):
            job()
    final = output / "fast_rcnn/model_final.pth"
    before = written_at(final)
    assert not (output / "fast_rcnn/results.json").exists()
    assert job("--resume") == 0
    assert (output / "fast_rcnn/results.json").is_file()
    assert written_at(final) == before

    monkeypatch.setattr(Trainer, "build_model", stop)
    capsys.readouterr()
    assert job("--resume") == 0  # nothing is left to do
    printed = capsys.readouterr().out
    assert printed.count("is finished: skipped") == 4
    assert "bbox" in printed


def test_proposals_are_redone_for_another_rpn_and_fast_rcnn_does_not_mix_them(
    job, tmp_path, capsys
):
    assert job() == 0
    output = tmp_path / "output"
    file = output / "proposals/shapes_minival.pkl"
    file.write_bytes(file.read_bytes()[:-10])  # damaged: not whole
    assert job("--resume") == 0
    assert len(pickle.loads(file.read_bytes())["ids"]) == 4

    final = output / "rpn/model_final.pth"
    content = torch.load(final, weights_only=True)
    content["model"]["proposal_generator.rpn_head.anchor_deltas.bias"] += 1.0
    torch.save(content, final)
    before = best_boxes(file)
    capsys.readouterr()
    assert job("--resume") == 1
    assert best_boxes(file) != before
    error = capsys.readouterr().err
    assert error.startswith(f"error: {output}/fast_rcnn was trained on other proposals than")
    assert error.count("\n") == 1


def best_boxes(file):
    return [boxes[0].tolist() for boxes in pickle.loads(file.read_bytes())["boxes"]]


def test_a_folder_with_a_run_is_not_used_again_unasked(job, tmp_path, monkeypatch, capsys):
    stop_training_at(2, monkeypatch, "rpn")
    with pytest.raises(InterruptedError):
        job()
    capsys.readouterr()
    assert job() == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: OUTPUT_DIR {tmp_path}/output holds a run already: go on with")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rpn": "faster_rcnn_X50_32x4d"}, "MODEL.META_ARCHITECTURE is GeneralizedRCNN, not Prop"),
        ({"fast": "faster_rcnn_X50_32x4d"}, "faster_rcnn_X50_32x4d does not load proposals"),
        ({"rpn": "paper/rpn_X51"}, "config file 'paper/rpn_X51' does not exist"),
        ({"words": ["FAST:SOLVER.MAXITER", "3"]}, "unknown config key 'SOLVER.MAXITER'"),
        ({"words": ["FAST:MODEL.ROI_HEADS.NUM_CLASSES", "4"]}, "shapes_train has 5 classes"),
        ({"words": ["RPN:OUTPUT_DIR", "elsewhere"]}, "the same OUTPUT_DIR, not elsewhere and"),
        ({"words": ["--resume"]}, "--resume stands after the KEY VALUE overrides"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(job, tmp_path, capsys, changed, message):
    assert job(**changed) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "output/rpn").exists()


def test_an_override_may_be_for_one_step():
    words = ["SEED", "1", "RPN:SOLVER.MAX_ITER", "5", "FAST:SOLVER.MAX_ITER", "7"]
    assert overrides_for("RPN", words) == ["SEED", "1", "SOLVER.MAX_ITER", "5"]
    assert overrides_for("FAST", words) == ["SEED", "1", "SOLVER.MAX_ITER", "7"]


def test_recall_of_proposals_has_columns_of_its_own():
    table = format_results({"box_proposals": {"AR@100": 12.3, "AR@1000": 45.6}}).split("\n")
    assert table[0].split() == ["AR@100", "small", "medium", "large", "AR@1000"]
    assert table[2].split() == ["box_proposals", "12.30", "n/a", "n/a", "n/a", "45.60"]


@pytest.mark.parametrize("row", ROWS)
def test_the_rpn_step_follows_appendix_b(row):
    cfg = resnext_det.get_cfg(f"paper/rpn_{row}")
    assert cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork"
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE) == (8 * 2, 256)
    assert learning_rates(cfg, 0, 119_999, 120_000, 179_999) == [0.02, 0.02, 0.002, 0.002]
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[64, 128, 256, 512]]
    assert cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS == [[0.5, 1.0, 2.0]]
    assert cfg.MODEL.RPN.IOU_THRESHOLDS == [0.3, 0.7]
    assert cfg.MODEL.RPN.NMS_THRESH == 0.7
    assert (cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TEST) == (2000, 300)


@pytest.mark.parametrize("row", ROWS)
def test_the_fast_rcnn_step_follows_appendix_b(row):
    cfg = resnext_det.get_cfg(f"paper/fast_rcnn_{row}")
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    assert cfg.MODEL.LOAD_PROPOSALS
    assert cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals"
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE) == (8 * 1, 64)
    assert learning_rates(cfg, 0, 119_999, 120_000, 179_999) == [0.005, 0.005, 0.0005, 0.0005]
    assert cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN == 2000
    assert cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST == 300
    heads = cfg.MODEL.ROI_HEADS
    assert (heads.IOU_THRESHOLDS, heads.POSITIVE_FRACTION) == ([0.5], 0.25)
    assert (heads.NMS_THRESH_TEST, heads.SCORE_THRESH_TEST) == (0.3, 0.05)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("step", ["rpn", "fast_rcnn"])
def test_both_steps_share_network_data_and_image_size_with_the_joint_config(step, row):
    ours = get_stock_cfg()  # Detectron2's keys alone
    ours.merge_from_file(str(config_path(f"paper/{step}_{row}")))
    joint = resnext_det.get_cfg(f"faster_rcnn_{row}")
    for key in ("WEIGHTS", "PIXEL_MEAN", "PIXEL_STD", "RESNETS", "BACKBONE"):
        assert ours.MODEL[key] == joint.MODEL[key]
    assert ours.INPUT == joint.INPUT
    assert (ours.INPUT.MIN_SIZE_TRAIN, ours.INPUT.MAX_SIZE_TRAIN) == ((600,), 1000)
    assert ours.DATASETS.TRAIN == ("coco_trainval35k",)
    assert ours.DATASETS.TEST == ("coco_minival",)
    assert (ours.SOLVER.WEIGHT_DECAY, ours.SOLVER.MOMENTUM) == (1e-4, 0.9)
    assert len(config_path(f"paper/{step}_{row}").read_text().splitlines()) <= 15
    text = config_path(f"paper/{step}_{row}").read_text()
    for key in ("WEIGHTS", "PIXEL_MEAN", "PIXEL_STD", "STRIDE_IN_1X1", "FORMAT"):
        assert f" {key}: " in text


def learning_rates(cfg, *iterations):
    """By Detectron2's own scheduler, at these iterations."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    rates = []
    for iteration in iterations:
        scheduler.last_epoch = iteration
        rates.append(pytest.approx(scheduler.get_lr()[0]))
    return rates
