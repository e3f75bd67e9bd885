"""The benchmark says of each side what it found and what it took."""

import json
import sys
import threading

import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from resnext_det.deploy.benchmark import Settings, measure, run_benchmark, settings
from resnext_det.deploy.benchmark.agreement import Agreement, compare_detections, compare_maps
from resnext_det.deploy.benchmark.forms import time_forms
from resnext_det.deploy.benchmark.memory import measure_memory
from resnext_det.deploy.benchmark.networks import Networks
from resnext_det.deploy.benchmark.parts import time_parts
from resnext_det.deploy.benchmark.picture import draw_report
from resnext_det.deploy.benchmark.results import Report, Row
from resnext_det.deploy.benchmark.tables import format_report
from resnext_det.errors import UserError

CONFIG = "faster_rcnn_X50_32x4d_FPN"


@pytest.fixture(scope="module")
def networks():
    return Networks(Settings(CONFIG, size=64, repeats=2))


def detections(*found):
    boxes, classes, scores = zip(*found, strict=True)
    return Instances(
        (100, 100),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
        pred_classes=torch.tensor(classes),
        scores=torch.tensor(scores),
    )


# how it is compared


def test_detections_are_paired_by_class_and_place():
    expected = detections(
        ([10, 10, 30, 30], 1, 0.9), ([50, 50, 80, 80], 2, 0.8), ([5, 60, 20, 90], 3, 0.7)
    )
    found = detections(
        ([50, 50.25, 80, 80], 2, 0.75),  # moved
        ([10, 10, 30, 30], 4, 0.9),  # another class
        ([5, 62, 20, 90], 3, 0.7),  # too far
        ([90, 90, 95, 95], 3, 0.1),
    )
    agreement = compare_detections(expected, found)
    assert (agreement.expected, agreement.found, agreement.matched) == (3, 4, 1)
    assert agreement.box == 0.25
    assert agreement.score == pytest.approx(0.05)


def test_no_detection_is_paired_twice():
    twice = detections(([10, 10, 30, 30], 1, 0.9), ([10, 10, 30, 30.5], 1, 0.8))
    once = detections(([10, 10, 30, 30], 1, 0.9))
    assert compare_detections(twice, once).matched == 1
    assert compare_detections(once, twice) == Agreement(1, 2, 1, 0.0, 0.0)


def test_images_without_detections_agree():
    nothing = detections(([1, 1, 2, 2], 0, 0.5))[:0]
    assert compare_detections(nothing, nothing) == Agreement(0, 0, 0, None, None)
    some = detections(([10, 10, 30, 30], 1, 0.9))
    assert compare_detections(some, nothing) == Agreement(1, 0, 0, None, None)


def test_maps_are_compared_by_their_largest_value():
    one = [torch.tensor([[1.0, -4.0]]), torch.tensor([10.0])]
    other = [torch.tensor([[1.0, -3.0]]).numpy(), torch.tensor([11.0]).numpy()]
    assert compare_maps(one, other) == 0.25
    with pytest.raises(ValueError, match="shapes"):
        compare_maps([torch.zeros(1, 2)], [torch.zeros(2, 1)])


def test_sides_run_in_turn_and_warm_up_before():
    order = []
    functions = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = measure.in_turn(functions, repeats=2, warmup=1)
    assert "".join(order) == "ababab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_streams_run_at_the_same_time_on_their_share_of_threads():
    before = torch.get_num_threads()
    barrier = threading.Barrier(2, timeout=10)  # breaks where one waits for the other to end
    threads = []

    def side(images):
        threads.append(torch.get_num_threads())
        barrier.wait()

    torch.set_num_threads(2)
    try:
        seconds = measure.streams_in_turn({"side": side}, torch.zeros(1), 2, repeats=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads == [1] * 8
    assert len(seconds["side"]) == 1


# what is said of it


def test_a_row_has_median_p90_and_ratio():
    rows = [
        Row("detectron2", seconds=[4.0, 3.0, 5.0]),
        Row("ours", seconds=[0.1 * i for i in range(11)]),
    ]
    report = Report(Settings(CONFIG), {}, 800, 1216, {"whole": rows})
    assert rows[0].median == 4
    assert rows[1].p90 == pytest.approx(0.9)
    assert report.ratio("whole", rows[1]) == pytest.approx(8)


def test_an_absent_engine_says_what_to_install_and_the_rest_is_measured(monkeypatch, tmp_path):
    for package in ("openvino", "onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    chosen = Settings(
        CONFIG,
        size=64,
        repeats=2,
        batches=(1,),
        streams=(1,),
        scopes=("backbone",),
        sides=("ours", "openvino-f32", "onnx-onnxruntime"),
        memory=False,
    )
    report = run_benchmark(chosen)
    rows = {row.name: row for row in report.rows["backbone"]}
    assert list(rows) == ["detectron2", "ours", "openvino-f32", "onnx-onnxruntime"]
    assert "pip install 'resnext_det[openvino]'" in rows["openvino-f32"].missing
    assert "pip install 'resnext_det[onnx]'" in rows["onnx-onnxruntime"].missing
    assert len(rows["ours"].seconds) == 2
    assert rows["ours"].difference < 1e-5
    text = format_report(report)
    assert text.count("pip install") == 2
    content = json.loads(json.dumps(report.as_json(), allow_nan=False))
    absent = content["rows"]["backbone"][2]
    assert absent["median_s"] is None
    assert absent["ratio"] is None
    assert content["rows"]["backbone"][1]["ratio"] == report.ratio("backbone", rows["ours"])
    draw_report(report, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.width > 500


def test_slower_forms_are_left_out_where_there_is_openvino(monkeypatch):
    slower = {"eager-f32", "compile-bf16"}
    for installed in (True, False):
        reason = None if installed else "it is absent"
        monkeypatch.setattr(settings, "why_missing", lambda engine, r=reason: r)
        names = set(Settings(CONFIG).names("whole"))
        assert slower.isdisjoint(names) if installed else slower <= names
    assert slower <= set(Settings(CONFIG, sides=("all",)).names("whole"))
    assert "onnx-openvino" not in Settings(CONFIG, sides=("all",)).names("whole")


@pytest.mark.parametrize("name", [CONFIG, "faster_rcnn_X50_32x4d"])
def test_parts_add_up_to_the_whole(name):
    few = ("MODEL.RPN.POST_NMS_TOPK_TEST", "50")
    networks = Networks(Settings(name, few, size=64, repeats=1))
    theirs, ours, compiled = time_parts(networks).values()
    assert list(theirs) == list(ours) == list(compiled)
    for parts in (theirs, ours):  # stages of the third are compiled alone
        whole = parts.pop("whole")
        assert min(parts.values()) > 0
        assert sum(parts.values()) == pytest.approx(whole, rel=0.1)
    assert not any(m._forward_hooks for m in networks.ours.modules())


@pytest.mark.slow
def test_every_form_is_timed(networks):
    forms = time_forms(networks)
    assert list(forms) == ["a", "b", "c"]
    assert all(seconds > 0 for form in forms.values() for seconds in form.values())
    assert forms["c"]["eager"] < forms["a"]["eager"]


def test_peak_memory_holds_the_weights(networks):
    weights = sum(t.nbytes for t in networks.detectron2.state_dict().values()) / 2**20
    chosen = Settings(CONFIG, size=64)
    memory = measure_memory(chosen, "whole", "detectron2")
    assert weights < memory.run < memory.make + 1000
    assert memory.make > 1.5 * weights  # the weights come from ours


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 10}, "--size 10"),
        ({"repeats": 0}, "--repeats 0"),
        ({"warmup": -1}, "--warmup -1"),
        ({"batches": (1, 0)}, "--batch 0"),
        ({"streams": (0,)}, "--streams 0"),
        ({"sides": ("openvino",)}, "--sides openvino.*did you mean openvino-f32"),
        ({"calibration_images": 0}, "--calibration-images 0"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        Settings(CONFIG, **changes)
