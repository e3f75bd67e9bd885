"""Exports: what is refused before they are written, their verification, and files of strangers."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

import resnext_det
from resnext_det.deploy.exported import ExportedRCNN
from resnext_det.deploy.formats import write
from resnext_det.deploy.runtimes import open_model
from resnext_det.deploy.support import require_exportable
from resnext_det.deploy.untrusted import load_exported, load_scripted
from resnext_det.deploy.verify import compare
from resnext_det.errors import UserError
from resnext_det.modeling.build import build_detector
from tests.deploy.exports import SIZES, config, detector, picture
from tests.inference.models import small_config


class OtherPredictor(FastRCNNOutputLayers):
    """A predictor that somebody else wrote."""


def with_other_predictor():
    model = build_detector(config("bgr"))
    model.roi_heads.box_predictor.__class__ = OtherPredictor
    return model


def named(name: str):
    cfg = resnext_det.get_cfg(name)
    cfg.MODEL.DEVICE = "cpu"
    return build_detector(cfg)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_detector(small_config(keypoints=True)), "keypoint head"),
        (lambda: named("retinanet_X50_32x4d_FPN"), "meta architecture RetinaNet"),
        (lambda: named("cascade_rcnn_X50_32x4d_FPN"), "RoI heads CascadeROIHeads"),
        (with_other_predictor, "box predictor OtherPredictor"),
    ],
    ids=["keypoints", "retinanet", "cascade", "subclass"],
)
def test_a_detector_of_which_a_part_would_be_lost_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        require_exportable(build().eval())


def answer(boxes, scores, classes, masks=None) -> dict:
    found = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "classes": np.array(classes),
    }
    return found if masks is None else {**found, "masks": np.array(masks, bool)}


ONE = ([0, 0, 10, 10], [0.9], [1])


def test_answers_that_agree_say_by_how_much():
    found = answer([[50, 50, 60, 60.5], [0, 0, 10, 10]], [0.7, 0.9], [2, 1])
    expected = answer([[0, 0, 10, 10.25], [50, 50, 60, 60]], [0.9, 0.7005], [1, 2])
    agreement = compare(found, expected, 100, 0.05)
    assert (agreement.count, agreement.pixels, agreement.borderline) == (2, 0.5, 0)
    assert agreement.score == pytest.approx(5e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (ONE, ([0, 0, 10, 11.1], [0.9], [1]), "no detection of class 1"),
        (ONE, ([0, 0, 10, 10], [0.902], [1]), "no detection of class 1"),
        (ONE, ([0, 0, 10, 10], [0.9], [2]), "no detection of class 2"),
        (ONE, ([], [], []), "an extra detection of class 1"),
        (([[0, 0, 10, 10]] * 2, [0.9] * 2, [1, 1]), ONE, "an extra detection of class 1"),
        (
            (*ONE, np.ones((1, 10, 10))),
            (*ONE, np.arange(100).reshape(1, 10, 10) > 2),
            "IoU 0.970",
        ),
    ],
)
def test_answers_that_differ_are_refused(found, expected, message):
    with pytest.raises(UserError, match=message):
        compare(answer(*found), answer(*expected), 100, 0.05)


@pytest.mark.parametrize(("most", "threshold"), [(100, 0.6996), (2, 0.05)])
def test_a_detection_at_the_limit_may_be_in_one_answer_alone(most, threshold):
    found = answer([[0, 0, 9, 9], [20, 20, 30, 30]], [0.9, 0.7], [1, 1])
    expected = answer([[0, 0, 9, 9], [40, 40, 50, 50]], [0.9, 0.7001], [1, 2])
    agreement = compare(found, expected, most, threshold)
    assert (agreement.count, agreement.borderline) == (1, 2)
    with pytest.raises(UserError):
        compare(found, expected, 100, 0.05)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A detector as .pt2 and as .torchscript."""
    folder = tmp_path_factory.mktemp("files")
    module = ExportedRCNN(detector("c4_pool"), "RGB")
    image = torch.from_numpy(picture(*SIZES[0]))
    names = ("boxes", "scores", "classes")
    write(module, image, names, "a card", "torch_export", folder / "model.pt2")
    write(module, image, names, "a card", "torchscript", folder / "model.torchscript")
    return folder


def changed(source, target, change):
    """Copy an archive; `change` maps a member's name and content to its new content."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def in_program(edit):
    def change(name, content):
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        edit(program, program["graph_module"]["graph"]["nodes"])
        return json.dumps(program).encode()

    return change


def test_files_are_loaded_with_their_cards(files):
    for load, name in ((load_exported, "model.pt2"), (load_scripted, "model.torchscript")):
        text, module = load(files / name)
        assert text == "a card"
        assert len(module(torch.from_numpy(picture(*SIZES[1])))) == 3


class _Trap:
    """Its unpickling leaves a mark."""

    mark = None

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def evil_sample(mark):
    def change(name, content):
        if not name.endswith("sample_inputs/model.pt"):
            return content
        trap = _Trap()
        trap.mark = mark
        stream = io.BytesIO()
        torch.save(trap, stream)
        return stream.getvalue()

    return change


def evil_constant(name, content):
    if not name.endswith("model_constants_config.json"):
        return content
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
    return json.dumps({"config": {"x": {**entry, "tensor_meta": None}}}).encode()


EXPRESSION = {"as_expr": {"expr_str": "__import__('os').getcwd()", "hint": None}}
ATTACKS = {
    "a function below torch": in_program(lambda p, n: n[0].update(target="torch.os.system")),
    "a file operation": in_program(
        lambda p, n: n[0].update(target="torch.ops.aten.from_file.default")
    ),
    "a size": in_program(lambda p, n: p.update(sizes=EXPRESSION)),
    "guards": in_program(lambda p, n: p.update(guards_code=["print(1)"])),
    "a range": in_program(lambda p, n: p["range_constraints"].update({"exit()": {}})),
    "an object": in_program(lambda p, n: p.update(as_custom_obj={"name": "x"})),
    "a tree": in_program(lambda p, n: p.update(in_spec='[1, {"type": "os.PathLike"}]')),
    "a constant": evil_constant,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_program_that_holds_more_than_a_detector_is_refused(attack, files, tmp_path):
    file = changed(files / "model.pt2", tmp_path / "model.pt2", ATTACKS[attack])
    with pytest.raises(UserError, match="is refused"):
        load_exported(file)


def test_sample_inputs_of_a_program_are_not_unpickled(files, tmp_path):
    mark = tmp_path / "mark"
    file = changed(files / "model.pt2", tmp_path / "model.pt2", evil_sample(mark))
    with pytest.raises(UserError, match="is refused"):
        open_model(file)
    assert not mark.exists()
    with pytest.raises((AssertionError, TypeError)):
        torch.export.load(str(file))  # which notices only afterwards
    assert mark.exists()


def test_a_member_of_another_kind_is_refused(files, tmp_path):
    with zipfile.ZipFile(files / "model.pt2") as old:
        prefix = old.namelist()[0].split("/")[0]
    file = changed(files / "model.pt2", tmp_path / "model.pt2", lambda name, content: content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{prefix}/data/aotinductor/model/run.so", b"x")
    with pytest.raises(UserError, match="it holds 'data/aotinductor"):
        load_exported(file)


class Writes(torch.nn.Module):
    """A scripted module that would write a file."""

    def forward(self, x: torch.Tensor):
        torch.save(x, "/tmp/never-written")
        return x


def test_a_script_that_writes_files_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(Writes()), str(tmp_path / "model.torchscript"))
    with pytest.raises(UserError, match="its code calls 'save'"):
        open_model(tmp_path / "model.torchscript")
