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
from resnext_det.deploy.scripted import load_scripted
from resnext_det.deploy.support import require_exportable
from resnext_det.deploy.untrusted import load_exported
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
    """A mask (10, 10) covers its box, of 10 x 10 pixels, whether it is pasted or not."""
    found = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "classes": np.array(classes),
    }
    return found if masks is None else {**found, "masks": np.array(masks)}


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
            (*ONE, np.ones((1, 10, 10), np.float32)),
            (*ONE, np.arange(100).reshape(1, 10, 10) > 2),
            "IoU 0.970",
        ),
    ],
)
def test_answers_that_differ_are_refused(found, expected, message):
    with pytest.raises(UserError, match=message):
        compare(answer(*found), answer(*expected), 100, 0.05)


def test_pixels_that_a_mask_is_undecided_about_may_be_in_one_answer_alone():
    mask = np.full((1, 10, 10), 0.9, np.float32)
    mask[0, :5] = 0.4995
    expected = answer(*ONE, np.arange(100).reshape(1, 10, 10) >= 20)
    assert compare(answer(*ONE, mask), expected, 100, 0.05).mask_iou == 1.0
    mask[0, :5] = 0.498
    with pytest.raises(UserError, match="IoU 0.625"):
        compare(answer(*ONE, mask), expected, 100, 0.05)


@pytest.mark.parametrize(("most", "threshold"), [(100, 0.6996), (2, 0.05)])
def test_a_detection_at_the_limit_may_be_in_one_answer_alone(most, threshold):
    found = answer([[0, 0, 9, 9], [20, 20, 30, 30]], [0.9, 0.7], [1, 1])
    expected = answer([[0, 0, 9, 9], [40, 40, 50, 50]], [0.9, 0.7001], [1, 2])
    agreement = compare(found, expected, most, threshold)
    assert (agreement.count, agreement.borderline) == (1, 2)
    with pytest.raises(UserError):
        compare(found, expected, 100, 0.05)


def test_answers_of_no_detections_at_most_agree():
    nothing = answer([], [], [])
    assert compare(nothing, nothing, 0, 0.05).count == 0


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


def changed(source, target, change, compression=zipfile.ZIP_STORED):
    """Copy an archive; `change` maps a member's name and content to its new content."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
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


@pytest.mark.parametrize(
    ("load", "name"), [(load_exported, "model.pt2"), (load_scripted, "model.torchscript")]
)
def test_an_archive_that_unpacks_to_more_than_itself_is_refused(load, name, files, tmp_path):
    def spaces(member, content):
        return content + b" " * 2**21 if member.endswith((".py", "model.json")) else content

    file = changed(files / name, tmp_path / name, spaces, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="what it holds is larger than itself"):
        load(file)


def test_code_of_absurd_length_is_refused_unread(files, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", None)
    monkeypatch.setattr(resnext_det.deploy.scripted, "ast", None)
    file = scripted(files, tmp_path, RETURN, RETURN + " " * 2**22)
    with pytest.raises(UserError, match="has more code than any detector"):
        load_scripted(file)


def in_code(old, new):
    """Changes the code of the whole detector, in which `SAVE` and `FILE` write to a path."""

    def change(name, content):
        if not name.endswith(".py") or b"class ExportedRCNN(" not in content:
            return content
        code = content.decode()
        assert old in code
        return code.replace(old, new.replace("SAVE", SAVE).replace("FILE", FILE), 1).encode()

    return change


SAVE = 'torch.save(torch.zeros([2], dtype=6), "written")'
FILE = 'torch.from_file("written", True, 4, dtype=6)'
RETURN = "    heads = self.heads\n"  # the first line of its forward
ATTRIBUTE = "  training : bool\n"
WHEN_CALLED = {
    "save": '    x = torch.save(image, "written")\n',
    "an alias": '    f = torch.save\n    x = f(image, "written")\n',
    "an alias of a name": '    t = torch\n    x = t.save(image, "written")\n',
    "an operation": '    x = ops.aten.save(image, "written")\n',
    "an alias of an operation": '    f = ops.aten.save\n    x = f(image, "written")\n',
    "an alias of operations": '    t = ops.aten\n    x = t.save(image, "written")\n',
    "brackets": '    x = (torch.save)(image, "written")\n',
    "a file": "    image = FILE\n",
    "a harmless one": "    image = torch.square(image)\n",
}
WHEN_LOADED = {
    "a default value": ("    image: Tensor)", "    image: Tensor, y: Tensor=FILE)"),
    "a default of nothing": ("    image: Tensor)", "    image: Tensor, y: Tuple[()]=SAVE)"),
    "a constant": (ATTRIBUTE, ATTRIBUTE + "  c : Final[Tensor] = FILE\n"),
    "a constant of nothing": (ATTRIBUTE, ATTRIBUTE + "  c : Final[Tuple[()]] = SAVE\n"),
}
ELSEWHERE = {
    "two lines": (RETURN, '    x = torch.\\\nsave(image, "written")\n' + RETURN),
    "a comment": (RETURN, '    x = torch.save # ()\n    (image, "written")\n' + RETURN),
    "an expression": (RETURN, "    SAVE\n" + RETURN),
    "a state": (
        "  def forward(self: ",
        "  def __setstate__(self, s: int) -> NoneType:\n    SAVE\n    return None\n"
        "  def forward(self: ",
    ),
    "a record": ("class ExportedRCNN(", "class X(NamedTuple):\n  x : int\nclass ExportedRCNN("),
    "a function": ("class ExportedRCNN(", "def f() -> int:\n  return 1\nclass ExportedRCNN("),
    "a function within": (RETURN, "    def f(y: Tensor=FILE):\n      return y\n" + RETURN),
    "a type that is called": (ATTRIBUTE, ATTRIBUTE + "  x : f(1)\n"),
    "no Python": (RETURN, "    1 = 1 1\n" + RETURN),
}


def scripted(files, folder, old, new):
    change = in_code(old, new)
    return changed(files / "model.torchscript", folder / "model.torchscript", change)


@pytest.mark.parametrize("attack", WHEN_CALLED)
def test_a_script_that_calls_more_than_a_detector_does_is_refused(attack, files, tmp_path):
    file = scripted(files, tmp_path, RETURN, WHEN_CALLED[attack] + RETURN)
    with pytest.raises(UserError, match="its code calls 'aten::(save|from_file|square)'"):
        load_scripted(file)


@pytest.mark.parametrize("attack", [*WHEN_LOADED, *ELSEWHERE])
def test_a_script_of_another_shape_is_refused_unread(attack, files, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", None)
    file = scripted(files, tmp_path, *{**WHEN_LOADED, **ELSEWHERE}[attack])
    with pytest.raises(UserError, match="'code/__torch__/resnext_det/deploy/exported.* in it has"):
        load_scripted(file)


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*")
@pytest.mark.parametrize("attack", WHEN_LOADED)
def test_torch_runs_what_is_refused_before_a_script_is_loaded(attack, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = scripted(files, tmp_path, *WHEN_LOADED[attack])
    torch.jit.load(str(file))
    assert (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", b"{}", "it holds 'model.json'"),
        ("code/evil.txt", b"", "it holds 'code/evil.txt'"),
        ("code/__torch__/x.py", b"\xff", "has characters"),
        ("constants.pkl", b"c__torch__.torch\nclasses.x.Y\n)R.", "names a class of C"),
    ],
)
def test_a_member_that_no_script_has_is_refused(name, content, message, files, tmp_path):
    file = tmp_path / "model.torchscript"
    with zipfile.ZipFile(files / file.name) as old, zipfile.ZipFile(file, "w") as new:
        prefix = old.namelist()[0].split("/")[0]
        for each in old.namelist():
            if each != f"{prefix}/{name}":
                new.writestr(each, old.read(each))
        new.writestr(f"{prefix}/{name}", content)
    with pytest.raises(UserError, match=message):
        load_scripted(file)
