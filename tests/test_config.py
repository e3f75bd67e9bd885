import re
import subprocess
import sys

import detectron2.config
import pytest
from detectron2.config import CfgNode

import resnext_det
from resnext_det.config import TRAINING_KEYS, check_keys, config_names, dump_config, load_config
from resnext_det.errors import UserError
from tests.engine.jobs import QUICK


def test_a_shipped_config_is_found_by_name():
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d")
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NUM_GROUPS) == (50, 32)
    assert resnext_det.get_cfg("faster_rcnn_X50_32x4d.yaml") == cfg


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(
        ValueError, match="'faster_rcnn_X50_32x4'; did you mean faster_rcnn_X50_32x4d"
    ):
        resnext_det.get_cfg("faster_rcnn_X50_32x4")


@pytest.mark.parametrize("name", ["../setup", "/etc/passwd", "Base-RCNN-C4", ""])
def test_only_shipped_experiments_have_names(name):
    with pytest.raises(ValueError, match="no shipped config"):
        resnext_det.get_cfg(name)


@pytest.mark.parametrize("name", config_names())
def test_a_saved_config_reloads_in_stock_detectron2(name, tmp_path):
    saved = tmp_path / "config.yaml"
    cfg = resnext_det.get_cfg(name)
    saved.write_text(dump_config(cfg))
    stock = detectron2.config.get_cfg()
    stock.merge_from_file(str(saved))
    again = resnext_det.get_cfg()
    again.merge_from_file(str(saved))
    # parsed: yaml prints a list that two keys share with an anchor
    assert CfgNode.load_cfg(dump_config(again)) == CfgNode.load_cfg(dump_config(cfg))
    for ours in ("RESNEXT", "FAST_LAYERS", "MEMORY_FORMAT"):
        again.MODEL.pop(ours)
    assert stock.MODEL == again.MODEL
    assert stock.INPUT == again.INPUT


def test_a_plain_runs_config_has_only_detectron2s_keys():
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d")
    dumped = CfgNode.load_cfg(dump_config(cfg))
    assert dumped.SOLVER.keys() == detectron2.config.get_cfg().SOLVER.keys()


def test_importing_leaves_detectron2s_config_as_it_is():
    program = (
        "from detectron2.config import get_cfg; before = get_cfg().dump(); import resnext_det; "
        "import importlib; importlib.reload(resnext_det); assert get_cfg().dump() == before"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


_OTHER_VALUES = {
    "SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.ACCUM_STEPS": 2,
    "SOLVER.AMP.DTYPE": "bfloat16",
    "SOLVER.EMA_DECAY": 0.99,
    "SOLVER.EARLY_STOP_PATIENCE": 3,
    "DATALOADER.MAX_SKIPPED_IMAGES": 3,
    "MODEL.MEMORY_FORMAT": "contiguous",
    "MODEL.FAST_LAYERS": False,
    "TEST.COCO_EVALUATOR": "pycocotools",
    "TEST.SCORE": 0.3,
    "TEST.NUM_IMAGES": 7,
}


@pytest.mark.parametrize("key", TRAINING_KEYS)
def test_a_set_training_key_survives_a_save_and_stock_detectron2_skips_it(key, tmp_path):
    cfg = resnext_det.get_cfg()
    cfg.merge_from_list([key, _OTHER_VALUES[key]])
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(cfg))
    again = resnext_det.get_cfg()
    again.merge_from_file(str(saved))
    line = f"{key.split('.')[-1]}: {_OTHER_VALUES[key]}"
    assert line.lower() in saved.read_text().lower()
    assert CfgNode.load_cfg(dump_config(again)) == CfgNode.load_cfg(dump_config(cfg))
    detectron2.config.get_cfg().merge_from_file(str(saved))


@pytest.mark.parametrize(
    ("wrong", "value", "hint"),
    [
        ("BASE_LR", 0.1, "SOLVER.BASE_LR"),
        ("MODEL_DEVICE", "cpu", "MODEL.DEVICE"),
        ("MODEL_WEIGHTS", "x.pth", "MODEL.WEIGHTS"),
        ("SOLVER.BASE_LRR", 0.1, "SOLVER.BASE_LR"),
        ("NUM_GPUS", 2, None),
    ],
)
def test_a_key_that_python_assigned_in_vain_is_an_error_with_the_nearest(wrong, value, hint):
    cfg = resnext_det.get_cfg()
    check_keys(cfg)
    node = cfg
    *parents, leaf = wrong.split(".")
    for parent in parents:
        node = node[parent]
    setattr(node, leaf, value)
    with pytest.raises(UserError, match=f"config key '{wrong}' is set, and nothing") as raised:
        check_keys(cfg)
    if hint:
        assert f"did you mean {hint}" in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["SOLVER.BASE_LRR", "1"],
            r"unknown config key 'SOLVER.BASE_LRR'; did you mean SOLVER.BASE_LR",
        ),
        (["MODEL.RESNETS", "1"], "unknown config key 'MODEL.RESNETS'"),
        (["SOLVER.BASE_LR", "high"], "config key SOLVER.BASE_LR: Type mismatch"),
        (["SOLVER.BASE_LR"], "'SOLVER.BASE_LR' has no value"),
        (["SOLVER.MAX_ITER", "5", "--resume"], "--resume stands after"),
    ],
)
def test_a_wrong_override_is_one_line(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config("faster_rcnn_X50_32x4d", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  BACKBON:\n    NAME: x\n", "unknown config key 'MODEL.BACKBON"),
        ("MODEL: [", "config.yaml: "),
        ("SOLVER:\n  MAX_ITER: many\n", "Type mismatch"),
        ("_BASE_: config.yaml\n", "in a circle"),
        ("[1, 2]", "config.yaml: "),
        ("MODEL: 3\n", "config.yaml: "),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml"),
        ("OUTPUT_DIR: !!python/object/apply:os.getcwd []\n", "python/object/apply:os.getcwd"),
    ],
)
def test_a_wrong_file_is_one_line(text, message, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(str(file))
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named():
    with pytest.raises(UserError, match=r"config file 'configs/nothing.yaml' does not exist"):
        load_config("configs/nothing.yaml")


def test_a_whole_number_is_a_float_too():
    cfg = load_config(QUICK, ["SOLVER.BASE_LR", "1", "SOLVER.EMA_DECAY", "0"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.EMA_DECAY) == (1.0, 0.0)
    assert isinstance(cfg.SOLVER.BASE_LR, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL.WEIGHTS: x", "'MODEL.WEIGHTS' is no key in YAML: write WEIGHTS below MODEL:"),
        ("MODEL: {WEIGHT: x}", "there is no key MODEL.WEIGHT; write WEIGHTS"),
        ("solver: {max_iter: 3}", "unknown config key 'solver'; did you mean SOLVER"),
    ],
)
def test_a_key_that_is_nearly_right_is_named_right(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(str(file))


def test_the_case_of_a_key_does_not_hide_what_was_meant():
    with pytest.raises(UserError, match=r"'solver.max_iter'; did you mean SOLVER.MAX_ITER"):
        load_config(QUICK, ["solver.max_iter", "3"])


def test_an_empty_group_that_nobody_reads_is_refused():
    cfg = resnext_det.get_cfg()
    cfg.MODEL.ROI_HEAD = CfgNode()
    with pytest.raises(UserError, match="'MODEL.ROI_HEAD' is set, and nothing reads it"):
        check_keys(cfg)
