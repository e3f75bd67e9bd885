"""`tools/train_two_step.py` from a shell: both steps on real COCO images, in two processes."""

import json
import pickle

from tests.helpers import REPO, TINY_COCO, needs_tiny_coco, run_tool

TOOL = REPO / "tools/train_two_step.py"
SMALL = (
    "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.DEPTH", 26,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.NUM_GROUPS", 4, "SOLVER.IMS_PER_BATCH", 2,
    "RPN:SOLVER.MAX_ITER", 3, "FAST:SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 1e-4,
    "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 2,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4,
)  # fmt: skip


@needs_tiny_coco
def test_one_command_trains_both_steps_on_real_images_in_two_processes(tmp_path):
    (tmp_path / "coco").symlink_to(TINY_COCO, target_is_directory=True)
    output = tmp_path / "output"
    words = ("--rpn-config", REPO / "configs/paper/rpn_X50_32x4d.yaml")
    words += ("--fast-rcnn-config", "paper/fast_rcnn_X50_32x4d", "--num-gpus", 2, *SMALL)
    done = run_tool(TOOL, *words, "OUTPUT_DIR", output, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, split in (("coco_trainval35k", "train2017"), ("coco_minival", "val2017")):
        content = pickle.loads((output / f"proposals/{name}.pkl").read_bytes())
        truth = json.loads((TINY_COCO / f"annotations/instances_{split}.json").read_text())
        assert sorted(content["ids"]) == sorted(i["id"] for i in truth["images"])
        assert not list((output / "proposals").glob(".*"))
    results = json.loads((output / "fast_rcnn/results.json").read_text())
    assert 0 <= results["bbox"]["AP"] <= results["bbox"]["AP50"] <= 100
    assert (output / "fast_rcnn/log.txt.rank1").is_file()

    again = run_tool(TOOL, *words, "OUTPUT_DIR", output, datasets=tmp_path, cwd=tmp_path)
    assert again.returncode == 1
    assert (
        again.stderr.strip()
        .split("\n")[-1]
        .startswith(f"error: OUTPUT_DIR {output} holds a run already")
    )
