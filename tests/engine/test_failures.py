"""Failures that are provoked, and what is said of them."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from resnext_det import get_cfg
from resnext_det.data import shapes
from resnext_det.engine.failures import (
    Situation,
    explain_dead_worker,
    explain_in_evaluation,
    explain_non_finite,
    explain_out_of_memory,
    is_out_of_memory,
    suspicious_boxes,
)
from resnext_det.engine.replay import pack_batch, replay, unpack_batch
from resnext_det.engine.schedule import Reference
from resnext_det.engine.setup import _be_deterministic, without_sync_bn
from resnext_det.engine.step import NonFiniteLossError, TrainingStep
from resnext_det.errors import UserError
from tests.engine.jobs import QUICK, SMALL, Run, small_shapes
from tests.helpers import REPO, run_tool


def test_a_loss_that_is_not_finite_is_reported_saved_and_replayed(tmp_path):
    output = tmp_path / "output"
    words = ("SOLVER.MAX_ITER", "30", "SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0")
    run = Run(tmp_path, output, *words)
    assert run.wait() == 1
    last = run.console.strip().splitlines()[-1]
    assert last.startswith("error: training diverged at iteration ")
    for words in (
        "not finite, learning rate ",
        ", 2 images a step, ",
        "times the config's learning rate per image",
        "lower SOLVER.BASE_LR",
        f"Details: {output}/nan_batch.json",
        f"python tools/replay_batch.py {output}/nan_batch.pth",
    ):
        assert words in last
    report = json.loads((output / "nan_batch.json").read_text())
    assert report["iteration"] >= 1
    assert report["terms_not_finite"]
    assert len(report["files"]) == 2
    assert all(os.path.isfile(file) for file in report["files"])
    assert len(report["last_total_losses"]) == report["iteration"] - 1
    assert 9e29 < report["learning_rate"] <= 1e30
    assert report["weights"]
    done = run_tool(
        REPO / "tools/replay_batch.py", output / "nan_batch.pth", datasets=tmp_path, cwd=tmp_path
    )
    assert "nan" in done.stdout or "error: again: " in done.stderr
    assert "Traceback" not in done.stderr


def _diverge_in(model, bad, folder, **settings):
    """Train on images 0, 1, ... one a pass, of which the `bad` one's loss is NaN."""
    cfg = get_cfg(QUICK)
    cfg.OUTPUT_DIR = str(folder)
    cfg.MODEL.DEVICE = "cpu"
    batches = iter([[{"file_name": f"{n}.png", "number": n}] for n in range(100)])
    step = TrainingStep(
        model(bad), batches, torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1), **settings
    )
    with EventStorage():
        for iteration in range(4):
            step.iter = iteration
            try:
                step.run_step()
            except NonFiniteLossError as error:
                situation = Situation(cfg, iteration, 0.1, step.batch, step.part, "", 0)
                return explain_non_finite(situation, error, {})
    pytest.fail("it did not diverge")


class Fragile(nn.Module):
    """Its loss is NaN on one image, and a draw of random numbers on the others."""

    def __init__(self, bad):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.bad = bad

    def forward(self, batch):
        number = batch[0]["number"]
        return {"loss_a": self.weight.sum() * (float("nan") if number == self.bad else 1.0)}


@pytest.mark.parametrize(("bad", "part"), [(4, 0), (5, 1), (7, 1)])
def test_of_accumulated_passes_the_one_that_is_not_finite_is_reported(tmp_path, bad, part):
    message = _diverge_in(Fragile, bad, tmp_path, accumulate=2)
    assert f"diverged at iteration {bad // 2 + 1}: loss_a not finite" in message
    report = json.loads((tmp_path / "nan_batch.json").read_text())
    assert report["files"] == [f"{bad}.png"]
    saved = torch.load(tmp_path / "nan_batch.pth", weights_only=True)
    assert (saved["iteration"], saved["part"], saved["rank"]) == (bad // 2, part, 0)
    assert saved["batch"][0]["file_name"] == f"{bad}.png"


@pytest.mark.parametrize("precision", ["", "bfloat16"])
def test_a_replay_draws_the_numbers_of_its_pass_in_its_precision(tmp_path, precision):
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 1)

        def forward(self, batch):
            return {"loss": self.layer(torch.rand(1, 64)).sum()}

    model = Drawing()
    batches = iter([[{"file_name": "a"}]] * 2)
    kind = getattr(torch, precision) if precision else None
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    step = TrainingStep(model, batches, optimizer, accumulate=2, precision=kind, seed=5)
    seen = []
    model.register_forward_hook(lambda *args: seen.append(args[2]["loss"].item()))
    step.iter = 3
    with EventStorage():
        step.run_step()
    content = {"model": model.state_dict(), "batch": [{"file_name": "a"}], "iteration": 3}
    content |= {"seed": 5, "part": 1, "rank": 0, "precision": precision}
    torch.save(content, tmp_path / "nan_batch.pth")
    assert replay(tmp_path / "nan_batch.pth", model) == {"loss": seen[1]}
    assert seen[0] != seen[1]


def test_another_process_names_its_own_files(monkeypatch, tmp_path):
    monkeypatch.setattr("resnext_det.engine.failures.comm.get_rank", lambda: 1)
    message = _diverge_in(Fragile, 0, tmp_path)
    assert f"Details: {tmp_path}/nan_batch.rank1.json" in message
    assert f"replay_batch.py {tmp_path}/nan_batch.rank1.pth" in message
    assert (tmp_path / "nan_batch.rank1.json").is_file()
    assert (tmp_path / "nan_batch.rank1.pth").is_file()


def test_boxes_of_a_later_stage_that_are_not_finite_are_a_diverged_training(tmp_path):
    class Cascade(Fragile):
        def forward(self, batch):
            Boxes(torch.full((1, 4), float("nan"))).clip((10, 10))

    message = _diverge_in(Cascade, 0, tmp_path)
    assert "loss_of_predicted_boxes not finite" in message


def test_an_error_of_the_programs_own_is_not_taken_for_divergence(tmp_path):
    class Wrong(Fragile):
        def forward(self, batch):
            raise AssertionError("a shape is wrong")

    with pytest.raises(AssertionError, match="a shape is wrong"):
        _diverge_in(Wrong, 0, tmp_path)


def test_an_error_inside_a_data_worker_is_not_taken_for_its_death():
    raised = RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Trace...")
    assert explain_dead_worker(raised) is None
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    assert "a data worker died" in explain_dead_worker(killed)


def test_an_evaluation_without_memory_is_one_line():
    cfg = get_cfg(QUICK)
    message = explain_in_evaluation(torch.OutOfMemoryError("CUDA out of memory"), cfg)
    assert message.startswith("out of memory in the evaluation, peak ")
    assert f"INPUT.MIN_SIZE_TEST (now {cfg.INPUT.MIN_SIZE_TEST})" in message
    assert explain_in_evaluation(KeyError("x"), cfg) is None


def test_what_is_no_saved_batch_is_one_line(tmp_path):
    tool = REPO / "tools/replay_batch.py"
    done = run_tool(tool, tmp_path / "nan_batch.pth", datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def _item(boxes, **fields):
    truth = Instances((40, 60))
    truth.gt_boxes = Boxes(torch.tensor(boxes))
    truth.gt_classes = torch.zeros(len(boxes)).long()
    for name, value in fields.items():
        truth.set(f"gt_{name}", value)
    return {"file_name": "a.jpg", "image": torch.zeros(3, 40, 60), "instances": truth}


def test_suspicious_boxes_are_those_without_area_outside_or_not_finite():
    boxes = [[1.0, 2, 20, 30], [5, 5, 5.5, 20], [10, 10, 70, 20], [0, 0, float("nan"), 4]]
    found = suspicious_boxes([_item(boxes), {"image": torch.zeros(3, 4, 4)}])
    assert [each["why"] for each in found] == [
        "0.5 x 15 pixels",
        "outside the image of 60 x 40",
        "not finite",
    ]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {each["file_name"] for each in found} == {"a.jpg"}


@pytest.mark.parametrize(
    "masks",
    [
        BitMasks(torch.rand(1, 40, 60) > 0.5),
        PolygonMasks([[torch.tensor([1.0, 1, 9, 1, 9, 9]).numpy()]]),
    ],
)
def test_a_batch_is_packed_without_code_and_unpacked_the_same(masks, tmp_path):
    item = _item([[1.0, 2, 20, 30]], masks=masks, keypoints=Keypoints(torch.ones(1, 17, 3)))
    torch.save(pack_batch([item]), tmp_path / "batch.pth")
    (again,) = unpack_batch(torch.load(tmp_path / "batch.pth", weights_only=True))
    assert again.keys() == item.keys()
    before, after = item["instances"].get_fields(), again["instances"].get_fields()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert type(after[name]) is type(value)
        plain = [getattr(v, "tensor", v) for v in (value, after[name])]
        if name == "gt_masks" and isinstance(masks, PolygonMasks):
            assert (plain[0].polygons[0][0] == plain[1].polygons[0][0]).all()
        else:
            assert torch.equal(*plain)


def test_proposals_from_a_file_are_packed_too(tmp_path):
    proposals = Instances((40, 60))
    proposals.proposal_boxes = Boxes(torch.tensor([[1.0, 2, 20, 30]]))
    proposals.objectness_logits = torch.tensor([0.25])
    torch.save(pack_batch([{"proposals": proposals}]), tmp_path / "batch.pth")
    (again,) = unpack_batch(torch.load(tmp_path / "batch.pth", weights_only=True))
    assert again["proposals"].image_size == (40, 60)
    assert torch.equal(again["proposals"].proposal_boxes.tensor, proposals.proposal_boxes.tensor)
    assert again["proposals"].objectness_logits.tolist() == [0.25]


def test_want_of_memory_is_reported_with_remedies_in_order(tmp_path):
    """A limit on the address space, which a batch of large images passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SPLIT_SIZES", dict(shapes.SPLIT_SIZES))
        patch.setenv("DETECTRON2_DATASETS", "")
        small_shapes(tmp_path / "datasets")
        shapes.shapes_folder()
    words = (*SMALL, "SOLVER.IMS_PER_BATCH", "8", "INPUT.MIN_SIZE_TRAIN", "(1600,)")
    words += ("INPUT.MAX_SIZE_TRAIN", "1600", "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", "output")
    command = shlex.join(
        [sys.executable, str(REPO / "tools/train_net.py"), "--config-file", QUICK, *words]
    )
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "datasets")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 7000000; exec {command}"],
        **{"capture_output": True, "text": True, "env": environment, "cwd": tmp_path},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: out of memory at iteration 1: 8 images of up to 1600x1600 pix")
    assert "peak " in last
    ordered = [
        "1. SOLVER.AMP.ENABLED True",
        "2. MODEL.RESNEXT.CHECKPOINT True",
        "3. SOLVER.ACCUM_STEPS 2 (4 images at a time",
        "4. --auto-scale SOLVER.IMS_PER_BATCH 4 (learning rate 0.0015 ",
        "5. smaller images: INPUT.MIN_SIZE_TRAIN (now (1600,))",
    ]
    places = [last.index(words) for words in ordered]
    assert places == sorted(places)
    assert "Traceback" not in done.stderr


def test_remedies_that_are_in_use_are_not_proposed():
    cfg = get_cfg("faster_rcnn_X50_32x4d_FPN")
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.SOLVER.AMP.ENABLED = True
    cfg.MODEL.RESNEXT.CHECKPOINT = True
    situation = Situation(cfg, 3, 0.1, [], 0, "", 0, reference=Reference(16, 0.02))
    message = explain_out_of_memory(situation, 1)
    assert "1. smaller images" in message
    assert "2." not in message


def test_only_want_of_memory_counts_as_such():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_a_dead_data_worker_ends_the_job_with_its_line(tmp_path):
    words = ("SOLVER.MAX_ITER", "100000", "DATALOADER.NUM_WORKERS", "2")
    run = Run(tmp_path, tmp_path / "output", *words)
    run.wait_for((tmp_path / "output/model_0000003.pth").is_file)
    found = subprocess.run(
        ["pgrep", "-P", str(run.process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
    killed = time.monotonic()
    assert run.wait(60) == 1
    assert time.monotonic() - killed < 60
    last = run.console.strip().splitlines()[-1]
    assert last.startswith("error: a data worker died (")
    assert "lower DATALOADER.NUM_WORKERS, then go on with --resume" in last
    # the other worker, which may lose the job amid any call, seldom prints one of its own
    assert not re.search(r"(?<!Process-\d:\d:\n)(?<!Process-\d\d:\d:\n)Traceback", run.console)


def test_sync_bn_in_one_process_becomes_bn_with_a_warning(tmp_path):
    words = ("MODEL.RESNETS.NORM", "SyncBN", "MODEL.FPN.NORM", "SyncBN", "SOLVER.MAX_ITER", "1")
    run = Run(tmp_path, tmp_path / "output", *words)
    assert run.wait() == 0, run.console
    assert "plain BN in MODEL.FPN.NORM, MODEL.RESNETS.NORM" in run.console
    names = torch.load(tmp_path / "output/model_final.pth", weights_only=True)["model"]
    assert "backbone.fpn_output2.norm.running_mean" in names


def test_sync_bn_stays_in_several_gpu_processes(monkeypatch):
    monkeypatch.setattr("resnext_det.engine.setup.comm.get_world_size", lambda: 2)
    cfg = get_cfg(QUICK)
    cfg.MODEL.RESNETS.NORM = "SyncBN"
    cfg.MODEL.DEVICE = "cuda"
    assert without_sync_bn(cfg) == []
    assert cfg.MODEL.RESNETS.NORM == "SyncBN"


def test_deterministic_runs_and_says_what_it_needs_on_a_gpu(tmp_path, monkeypatch):
    run = Run(tmp_path, tmp_path / "output", "--deterministic", "SOLVER.MAX_ITER", "1")
    assert run.wait() == 0, run.console
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cfg = get_cfg(QUICK)
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(UserError, match="--deterministic needs CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        _be_deterministic(cfg)
