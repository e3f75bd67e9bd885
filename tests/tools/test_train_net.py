"""`tools/train_net.py` from a shell, on real COCO images and in several processes."""

import json
import re

import detectron2.config
import pytest

from tests.helpers import REPO, TINY_COCO, needs_tiny_coco, run_tool, write_coco_subset

TRAIN_NET = REPO / "tools/train_net.py"
SMALL = (
    "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 0,
    "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 3, "SOLVER.BASE_LR", 1e-4,
    "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 10,
)  # fmt: skip


@needs_tiny_coco
@pytest.mark.parametrize("name", ["faster_rcnn_X50_32x4d", "mask_rcnn_X50_32x4d_FPN"])
def test_it_trains_and_evaluates_on_real_images(name, tmp_path):
    (tmp_path / "coco").symlink_to(TINY_COCO, target_is_directory=True)
    output = tmp_path / "output"
    words = ("--config-file", REPO / f"configs/{name}.yaml", *SMALL, "OUTPUT_DIR", output)
    done = run_tool(TRAIN_NET, *words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tasks = ["bbox", "segm"] if name.startswith("mask") else ["bbox"]
    results = json.loads((output / "results.json").read_text())
    assert list(results) == tasks
    header, _, *rows = done.stdout.split("results on coco_minival, in percent:\n")[1].split("\n")
    assert header.split() == [
        "AP",
        "AP@0.5",
        "AP@0.75",
        "AP",
        "small",
        "AP",
        "medium",
        "AP",
        "large",
    ]
    for task, row in zip(tasks, rows, strict=False):
        assert row.split()[:3] == [task, *(f"{results[task][m]:.2f}" for m in ("AP", "AP50"))]
    assert done.stdout.count("no GPU is visible: running on the CPU") == 1
    assert "FrozenBN, which then normalises nothing" in done.stdout
    assert len(done.stdout.split("\n")) < 30
    assert done.stderr == ""
    for file in ("metrics.json", "inference/coco_instances_results.json"):
        assert (output / file).is_file()
    assert list(output.glob("events.out.tfevents.*"))
    detectron2.config.get_cfg().merge_from_file(str(output / "config.yaml"))


@needs_tiny_coco
def test_two_cpu_processes_share_a_batch(tmp_path):
    (tmp_path / "coco").symlink_to(TINY_COCO, target_is_directory=True)
    words = ("--config-file", REPO / "configs/faster_rcnn_X50_32x4d_FPN.yaml", "--num-gpus", 2)
    words += (*SMALL, "MODEL.RESNETS.DEPTH", 26, "OUTPUT_DIR", tmp_path / "output")
    done = run_tool(TRAIN_NET, *words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output/log.txt.rank1").is_file()
    log = (tmp_path / "output/log.txt").read_text()
    assert "Start inference on 25 batches" in log  # 50 images, half for each
    assert json.loads((tmp_path / "output/results.json").read_text())["bbox"]["AP"] >= 0


def test_a_mistake_in_a_child_process_is_one_line_in_the_end(tmp_path):
    words = ("--config-file", REPO / "configs/faster_rcnn_X50_32x4d.yaml", "--num-gpus", 2, *SMALL)
    done = run_tool(TRAIN_NET, *words, "OUTPUT_DIR", tmp_path, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr.strip().split("\n")[-1].startswith("error: dataset coco_trainval35k is not at")
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_torchrun_starts_it_as_well(tmp_path):
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, TRAIN_NET)
    words += ("--config-file", REPO / "configs/quick/faster_rcnn_X26_8x4d_FPN.yaml")
    words += ("SOLVER.MAX_ITER", 4, "OUTPUT_DIR", tmp_path / "output")
    done = run_tool(*words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output/log.txt.rank1").is_file()
    assert (tmp_path / "output/results.json").is_file()


@pytest.mark.slow
@needs_tiny_coco
def test_a_small_network_learns_8_real_images_by_heart(tmp_path):
    """Shows that data, targets, losses and evaluation agree: AP50 over 80 in minutes."""
    root = write_coco_subset(tmp_path / "datasets", 8, same=True)
    words = (
        "--config-file", REPO / "configs/quick/faster_rcnn_X26_8x4d_FPN.yaml",
        "DATASETS.TRAIN", "('coco_trainval35k',)", "DATASETS.TEST", "('coco_minival',)",
        "MODEL.ROI_HEADS.NUM_CLASSES", 80, "SOLVER.MAX_ITER", 280, "TEST.EVAL_PERIOD", 0,
        "INPUT.MIN_SIZE_TRAIN", "(192,)", "INPUT.MIN_SIZE_TEST", 192, "INPUT.RANDOM_FLIP", "none",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 128, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 128,
        "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64], [128], [256]]",
        "TEST.DETECTIONS_PER_IMAGE", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 200,
        "OUTPUT_DIR", tmp_path / "output",
    )  # fmt: skip
    done = run_tool(TRAIN_NET, *words, datasets=root, cwd=tmp_path, threads=2)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "output/results.json").read_text())
    print(results["bbox"]["AP50"])
    assert results["bbox"]["AP50"] > 80


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What `make demo` trains: the folder that holds `output`, and the job as it ended."""
    folder = tmp_path_factory.mktemp("demo")
    words = ("--config-file", REPO / "configs/quick/faster_rcnn_X26_8x4d_FPN.yaml")
    words += ("OUTPUT_DIR", folder / "output")
    return folder, run_tool(TRAIN_NET, *words, datasets=folder, cwd=folder, threads=2)


@pytest.mark.slow
def test_make_demo_reaches_60(demo):
    folder, done = demo
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "output/results.json").read_text())["bbox"]["AP"] >= 60
    assert re.search(r"^\s*bbox\s+\d\d\.\d\d", done.stdout, re.MULTILINE)
    done = run_tool(REPO / "tools/plot_run.py", folder / "output", datasets=folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "output/curves.png").is_file()
    assert (folder / "output/predictions.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("how, loss", [("f32", 0.01), ("bf16", 0.2), ("int8", 1.0)])
def test_an_optimised_detector_keeps_its_ap(how, loss, demo):
    folder, _ = demo
    trained, output = folder / "output", folder / how
    words = ("--config-file", trained / "config.yaml", "--eval-only", "--optimize", how)
    words += ("MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", output)
    done = run_tool(TRAIN_NET, *words, datasets=folder, cwd=folder, threads=2)
    assert done.returncode == 0, done.stderr
    before, after = (
        json.loads((f / "results.json").read_text())["bbox"]["AP"] for f in (trained, output)
    )
    print(how, before, after)
    assert after >= before - loss
    assert (output / "int8").is_dir() == (how == "int8")
