import contextlib
import io
import math
import re
import tracemalloc

import hotcoco
import numpy as np
import pytest
from detectron2.data.transforms import ResizeShortestEdge
from pycocotools import mask as mask_util

import resnext_det
from resnext_det.evaluation import evidence
from resnext_det.evaluation.diagnosis import INFORMATION, diagnose
from tests.helpers import REPO

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SIZES = ((640, 480), (480, 640), (500, 375), (427, 640))  # of COCO, width and height
# Category ids as sparse as COCO's
NAMES = {1: "circle", 3: "square", 4: "triangle", 7: "star", 12: "cross"}


def scene(images=40, names=None, objects=6, seed=0):
    """Ground truth with objects of 12 to 200 pixels: of all three size ranges."""
    random = np.random.default_rng(seed)
    names = NAMES if names is None else names
    content = {
        "images": [
            {"id": 100 + i, "width": SIZES[i % 4][0], "height": SIZES[i % 4][1]}
            for i in range(images)
        ],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
        "annotations": [],
    }
    for image in content["images"]:
        for _ in range(objects):
            w, h = np.exp(random.uniform(math.log(12), math.log(200), 2))
            x, y = random.uniform(0, (image["width"] - w, image["height"] - h))
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": int(random.choice(list(names))),
                    "bbox": [float(v) for v in (x, y, w, h)],
                    "area": float(w * h),
                    "iscrowd": 0,
                }
            )
    return content


def detect(content, noise=0.0, wrong=0.0, missed=0.0, extra=0, seed=1):
    """Detections of a scene: noisy boxes, some wrong classes, misses, extra boxes per image."""
    random = np.random.default_rng(seed)
    classes = [c["id"] for c in content["categories"]]
    found = []

    def add(image, category, box, score):
        box, score = [float(v) for v in box], float(score)
        found.append({"image_id": image, "category_id": category, "bbox": box, "score": score})

    for a in content["annotations"]:
        if random.random() < missed:
            continue
        x, y, w, h = a["bbox"]
        x, y = np.array([x, y]) + random.normal(0, noise, 2) * (w, h)
        w, h = np.array([w, h]) * np.exp(random.normal(0, noise, 2))
        category = a["category_id"]
        if random.random() < wrong:
            category = int(random.choice(classes))
        add(a["image_id"], category, (x, y, w, h), random.uniform(0.4, 1))
    for image in content["images"]:
        for _ in range(extra):
            box = [*random.uniform(0, 300, 2), *random.uniform(20, 200, 2)]
            add(image["id"], int(random.choice(classes)), box, random.uniform(0.05, 0.8))
    return found


def altered(found, **changes):
    """Detections with fields replaced: each is a function of the detection."""
    return [{**d, **{k: change(d) for k, change in changes.items()}} for d in found]


def findings(content, found, task="bbox", figures=None, **kwargs):
    """Diagnose by code; the figures are those of the evaluation unless given."""
    truth = hotcoco.COCO(content)
    results = truth.load_res(found)
    evaluator = hotcoco.COCOeval(truth, results, task)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.run()
    measured = {
        name: 100 * v if v >= 0 else math.nan
        for name, v in zip(METRICS, evaluator.stats, strict=False)
    }
    result = diagnose(truth, results, task, {**measured, **(figures or {})}, **kwargs)
    by_code = {finding.code: finding for finding in result}
    assert len(by_code) == len(result)
    for finding in result:
        assert finding.message and finding.remedy and "\n" not in finding.message + finding.remedy
        assert "nan" not in finding.message
    by_code["AP"] = measured["AP"]
    return by_code


def codes(*args, **kwargs):
    found = findings(*args, **kwargs)
    return [code for code in found if code != "AP"]


@pytest.mark.parametrize("seed", range(3))
def test_a_perfect_detector_has_no_finding(seed):
    content = scene(seed=seed)
    assert codes(content, detect(content)) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_mediocre_detector_has_no_finding(seed):
    content = scene(80, seed=seed)
    found = detect(content, noise=0.06, wrong=0.2, missed=0.2, extra=5, seed=seed + 50)
    result = findings(content, found)
    assert 20 < result.pop("AP") < 40
    assert not result


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("names", [{1: "thing"}, NAMES, {i: f"c{i}" for i in range(1, 81)}])
def test_tiny_sets_give_no_warning(images, names):
    for seed in range(4):
        content = scene(images, names, objects=1 + seed, seed=seed)
        found = detect(content, noise=0.05, wrong=0.1, extra=3, seed=seed)
        assert set(codes(content, found)) <= INFORMATION


def test_a_mediocre_single_class_has_no_finding():
    content = scene(names={1: "thing"})
    assert codes(content, detect(content, noise=0.1, missed=0.3, extra=5)) == []


def test_nothing_detected_is_told_with_the_threshold():
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d_FPN")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    content = scene()
    result = findings(content, [], cfg=cfg)
    assert "no_detections" in result and "low_ap" not in result
    assert "nothing in 40 images" in result["no_detections"].message
    assert "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.05" in result["no_detections"].message
    assert "no_detections" in codes(content, [], "keypoints", figures={"AP": 0.0})
    assert "no_detections" not in codes(content, detect(content)[:1])


def test_a_retinanet_has_its_own_threshold_named():
    cfg = resnext_det.get_cfg("retinanet_X50_32x4d_FPN")
    message = findings(scene(), [], cfg=cfg)["no_detections"].message
    assert "MODEL.RETINANET.SCORE_THRESH_TEST 0.05" in message


def test_scores_below_the_operating_point_are_told_with_the_highest():
    content = scene()
    low = altered(detect(content), score=lambda d: 0.07 * d["score"])
    highest = max(d["score"] for d in low)
    result = findings(content, low)
    assert list(result) == ["low_scores", "AP"]
    assert f"the highest score is {highest:.2g}" in result["low_scores"].message
    assert codes(content, low, score=0.05) == []


def test_annotations_without_an_object_leave_ap_undefined():
    content = scene()
    found = detect(content)
    result = findings({**content, "annotations": []}, found)
    assert list(result) == ["no_ground_truth", "AP"]
    assert "the 40 images have no object" in result["no_ground_truth"].message
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    result = findings(content, found)
    assert list(result) == ["no_ground_truth", "AP"]
    assert "only crowds (240)" in result["no_ground_truth"].message
    content["annotations"][0]["iscrowd"] = 0
    assert "no_ground_truth" not in codes(content, found)


def test_size_ranges_without_objects_are_named():
    content = scene()
    content["annotations"] = [a for a in content["annotations"] if a["area"] < 96**2]
    result = findings(content, detect(content))
    assert list(result) == ["empty_size_bins", "AP"]
    assert "APl is undefined: no object is larger than 96x96" in result["empty_size_bins"].message
    content["annotations"] = [a for a in content["annotations"] if a["area"] < 32**2]
    message = findings(content, detect(content))["empty_size_bins"].message
    assert "APm, APl are undefined" in message


def test_permuted_classes_are_mapped_back():
    content = scene()
    swap = {1: 7, 7: 1, 3: 12, 12: 3, 4: 4}
    found = altered(detect(content), category_id=lambda d: swap[d["category_id"]])
    result = findings(content, found)
    assert next(iter(result)) == "classes_permuted"
    message = result["classes_permuted"].message
    for pair in ("star -> truth circle", "circle -> truth star", "cross -> truth square"):
        assert f"predicted {pair}" in message
    assert "triangle" not in message
    assert "100.0 with classes ignored" in message


def test_two_swapped_classes_among_many_are_found_though_ap_is_high():
    names = {i: f"c{i}" for i in range(1, 21)}
    content = scene(80, names)
    swap = {2: 5, 5: 2, 7: 8}  # and c7 is taken for c8, one way
    found = detect(content, noise=0.05, wrong=0.1, extra=2)
    assert codes(content, found) == []
    result = findings(
        content,
        altered(found, category_id=lambda d: swap.get(d["category_id"], d["category_id"])),
    )
    assert result.pop("AP") > 40
    assert list(result) == ["classes_permuted"]
    message = result["classes_permuted"].message
    assert "predicted c5 -> truth c2" in message and "predicted c2 -> truth c5" in message
    assert message.count("predicted") == 2


def test_two_classes_that_are_often_confused_both_ways_are_not_swapped():
    content = scene()
    random = np.random.default_rng(0)
    swap = {1: 3, 3: 1}
    found = detect(content)
    for detection in found:
        if random.random() < 0.6:
            detection["category_id"] = swap.get(detection["category_id"], detection["category_id"])
    assert codes(content, found) == []


def test_one_mistake_each_way_between_two_rare_classes_is_no_swap():
    content = scene(names={1: "a", 2: "b", 3: "c"})
    kept = [a for a in content["annotations"] if a["category_id"] == 3]
    kept += [next(a for a in content["annotations"] if a["category_id"] == c) for c in (1, 2)]
    content["annotations"] = kept
    swap = {1: 2, 2: 1, 3: 3}
    found = altered(detect(content), category_id=lambda d: swap[d["category_id"]])
    assert codes(content, found) == []


def test_one_class_taken_for_another_one_way_is_no_permutation():
    content = scene()
    found = altered(
        detect(content), category_id=lambda d: 3 if d["category_id"] == 1 else d["category_id"]
    )
    assert not {"classes_permuted", "classes_confused"} & set(codes(content, found))


@pytest.mark.parametrize(
    "names, change, words",
    [
        ({i: f"c{i}" for i in range(1, 9)}, lambda i: i - 1, "each id is one too low"),
        ({i: f"c{i}" for i in range(1, 9)}, lambda i: i + 1, "as if the background were class 0"),
        (NAMES, list(NAMES).index, "the ids are the classes' places, 0 to K - 1"),
        (NAMES, {1: 3, 3: 4, 4: 7, 7: 12, 12: 1}.get, "taken for the next one of the list"),
        (NAMES, {3: 1, 4: 3, 7: 4, 12: 7, 1: 12}.get, "taken for the previous one of the list"),
    ],
)
def test_a_mistake_of_numbering_is_named(names, change, words):
    content = scene(names=names)
    found = altered(
        detect(content, noise=0.03, wrong=0.1), category_id=lambda d: change(d["category_id"])
    )
    message = findings(content, found)["classes_permuted"].message
    assert words in message
    assert message.count("predicted") <= 5


def test_classes_without_any_order_are_confused_and_not_permuted():
    content = scene()
    result = findings(content, detect(content, wrong=1.0))
    assert "classes_confused" in result and "classes_permuted" not in result
    all_one = altered(detect(content), category_id=lambda d: 3)
    result = findings(content, all_one)
    assert "classes_confused" in result and "classes_permuted" not in result


@pytest.mark.parametrize("images", [1, 2])
def test_wrong_classes_alone_are_told_of_a_handful_of_objects(images):
    content = scene(images, objects=6)
    turn = {1: 3, 3: 4, 4: 7, 7: 12, 12: 1}
    found = altered(detect(content, noise=0.02), category_id=lambda d: turn[d["category_id"]])
    assert {"classes_permuted", "classes_confused"} & set(codes(content, found))
    assert "low_ap" not in codes(content, found)
    few = {**content, "annotations": content["annotations"][:2]}
    assert "low_ap" in codes(few, found[:2])  # two objects say nothing


def test_an_unexplained_low_ap_comes_with_what_was_measured():
    content = scene()
    random = np.random.default_rng(0)
    moved = []
    for detection in detect(content):  # off, each in another direction
        x, y, w, h = detection["bbox"]
        angle = random.uniform(0, 2 * math.pi)
        shift = 0.4 * math.cos(angle) * w, 0.4 * math.sin(angle) * h
        moved.append({**detection, "bbox": [x + shift[0], y + shift[1], w, h]})
    result = findings(content, moved, figures={"AP": 1.0})
    message = result["low_ap"].message
    assert re.search(r"AP with classes ignored is \d+\.\d", message)
    assert re.search(r"most of AP50 \(\d+ points\) is lost to boxes that are off$", message)


def test_thousands_of_boxes_in_an_image_cost_little_memory():
    content = scene(2)
    found = detect(content, extra=6000)
    truth = hotcoco.COCO(content)
    results = truth.load_res(found)
    tracemalloc.start()
    diagnose(truth, results, "bbox", {"AP": 1.0, "AP50": 2.0})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200e6
    sample = evidence.gather(truth, results)
    assert sample.detections == len(found)
    for image in range(2):
        kept = sample.found.score[sample.found.of(image)]
        best = sorted((d["score"] for d in found if d["image_id"] == 100 + image), reverse=True)
        np.testing.assert_array_equal(kept, best[: evidence.MAX_DETECTIONS])


def test_masks_are_looked_at_by_their_boxes():
    content = scene(20)
    shapes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}

    def mask(thing):
        x, y, w, h = thing["bbox"]
        polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        return mask_util.merge(mask_util.frPyObjects(polygon, *shapes[thing["image_id"]]))

    for annotation in content["annotations"]:
        rle = mask(annotation)
        annotation["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    turn = {1: 3, 3: 4, 4: 7, 7: 12, 12: 1}
    found = [{**d, "segmentation": mask(d)} for d in detect(content)]
    assert codes(content, found, "segm") == []
    permuted = altered(found, category_id=lambda d: turn[d["category_id"]])
    assert codes(content, permuted, "segm") == ["classes_permuted"]


def test_keypoints_are_not_judged_by_their_boxes():
    content = scene(names={1: "person"})
    swapped = altered(detect(content), bbox=lambda d: [d["bbox"][i] for i in (1, 0, 3, 2)])
    truth = hotcoco.COCO(content)
    found = truth.load_res(swapped)
    assert diagnose(truth, found, "keypoints", {"AP": 60.0, "AP50": 80.0}) == []
    low = {"AP": 3.0, "AP50": 5.0}
    assert [f.code for f in diagnose(truth, found, "bbox", low)] == ["boxes_shifted"]
    (finding,) = diagnose(truth, found, "keypoints", low)
    assert finding.code == "low_ap" and "IoU" not in finding.message


def test_a_number_of_classes_that_differs_is_told():
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d_FPN")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    content = scene()
    message = findings(content, detect(content), cfg=cfg)["class_count"].message
    assert message == "MODEL.ROI_HEADS.NUM_CLASSES is 4, and the data set has 5 classes"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    assert codes(content, detect(content), cfg=cfg) == []


def test_classes_that_are_never_predicted_are_named():
    content = scene()
    found = [d for d in detect(content) if d["category_id"] not in (4, 12)]
    result = findings(content, found)
    assert list(result) == ["classes_missing", "AP"]
    assert "2 of 5 classes" in result["classes_missing"].message
    assert "never predicted: triangle, cross" in result["classes_missing"].message


def test_predictions_of_classes_without_objects_are_named_beside_those_missing():
    content = scene()
    content["categories"].append({"id": 20, "name": "moon"})
    assert codes(content, detect(content)) == []  # a class without objects alone is no fault
    found = altered(
        detect(content), category_id=lambda d: 20 if d["category_id"] == 4 else d["category_id"]
    )
    message = findings(content, found)["classes_missing"].message
    assert message.endswith("never predicted: triangle; predicted without any object: moon")


def test_a_rare_class_that_is_never_predicted_is_no_fault():
    content = scene()
    rare = [a for a in content["annotations"] if a["category_id"] == 12][10:]
    content["annotations"] = [a for a in content["annotations"] if a not in rare]
    found = [d for d in detect(content) if d["category_id"] != 12]
    assert codes(content, found) == []


def test_category_ids_outside_of_the_data_set_are_named():
    content = scene()
    found = detect(content, extra=2)
    for detection in found[::10]:
        detection["category_id"] = 99
    message = findings(content, found)["classes_missing"].message
    assert f"{len(found[::10])} of {len(found)} detections" in message
    assert "e.g. 99" in message


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x, y, w, h: (x, y, x + w, y + h), "boxes are x0, y0, x1, y1"),
        (lambda x, y, w, h: (y, x, h, w), "x and y are swapped"),
        (lambda x, y, w, h: (x + w / 2, y + h / 2, w, h), "are their centre"),
        (lambda x, y, w, h: (2 * x, 2 * y, 2 * w, 2 * h), "2.0. times the right scale in x"),
        (lambda x, y, w, h: (0.5 * x, y, 0.5 * w, h), "0.50 times the right scale in x and 1.0"),
        (lambda x, y, w, h: (x + 150, y + 90, w, h), r"moved by \+1[45]. and \+(8|9). pixels"),
    ],
)
def test_boxes_in_another_frame_are_recognised(change, words, seed):
    content = scene(seed=seed)
    found = detect(content, noise=0.04, missed=0.1, extra=3, seed=seed)
    assert codes(content, found) == []
    result = findings(content, altered(found, bbox=lambda d: list(change(*d["bbox"]))))
    assert result["AP"] < 5
    assert re.search(words, result["boxes_shifted"].message)


def test_boxes_as_fractions_of_the_image_are_recognised():
    content = scene()
    sizes = {i["id"]: [i["width"], i["height"]] * 2 for i in content["images"]}
    found = altered(
        detect(content),
        bbox=lambda d: [v / s for v, s in zip(d["bbox"], sizes[d["image_id"]], strict=True)],
    )
    assert "fractions of the image" in findings(content, found)["boxes_shifted"].message


@pytest.mark.parametrize("power, words", [(1, "scale of the resized"), (-1, "scaled back twice")])
def test_boxes_at_the_scale_of_the_resized_image_are_recognised(power, words):
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d_FPN")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    content = scene()
    scale = {}
    for image in content["images"]:
        resize = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        pixels = np.zeros((image["height"], image["width"], 3), np.uint8)
        new = resize.get_transform(pixels).apply_image(pixels).shape
        scale[image["id"]] = (new[1] / image["width"]) ** power
    found = altered(
        detect(content, noise=0.03),
        bbox=lambda d: [v * scale[d["image_id"]] for v in d["bbox"]],
    )
    result = findings(content, found, cfg=cfg)
    assert next(iter(result)) == "boxes_shifted"
    assert words in result["boxes_shifted"].message
    assert f"MIN_SIZE_TEST {cfg.INPUT.MIN_SIZE_TEST}" in result["boxes_shifted"].message


@pytest.mark.parametrize("seed", range(5))
def test_random_boxes_are_in_no_other_frame_and_stay_unexplained(seed):
    content = scene(seed=seed)
    found = detect(content, missed=1.0, extra=50, seed=seed)
    assert codes(content, found) == ["low_ap"]


def test_a_hundred_small_guesses_on_large_objects_are_not_boxes_at_half_the_scale():
    random = np.random.default_rng(0)
    content = scene(20, objects=2)
    for annotation in content["annotations"]:
        box = [*random.uniform(0, (200, 120)), *random.uniform(120, 250, 2)]
        annotation.update(bbox=[float(v) for v in box], area=float(box[2] * box[3]))
    found = detect(content, missed=1.0, extra=100)
    found = altered(found, bbox=lambda d: [0.5 * v for v in d["bbox"]])
    assert set(codes(content, found)) == {"low_ap", "empty_size_bins"}


def test_a_low_ap_is_not_called_unexplained_where_a_cause_was_found():
    content = scene()
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d_FPN")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.INPUT.FORMAT = "BGR"
    found = detect(content, missed=1.0, extra=50)
    assert codes(content, found, cfg=cfg) == ["input_suspected"]


def test_detections_on_other_images_are_told():
    content = scene()
    found = detect(content)
    elsewhere = altered(found, image_id=lambda d: d["image_id"] - 100)
    result = findings(content, elsewhere)
    assert next(iter(result)) == "image_ids_foreign"
    assert "240 of 240 detections" in result["image_ids_foreign"].message
    assert codes(content, found + elsewhere[:200]) == []  # a larger set's results


def test_detections_without_suppression_are_told():
    content = scene()
    found = detect(content, noise=0.02, extra=3)
    assert codes(content, found) == []
    again = detect(content, noise=0.02, extra=0, seed=2)
    result = findings(content, found + again)
    assert list(result) == ["duplicates", "AP"]
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d_FPN")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    remedy = findings(content, found + again, cfg=cfg)["duplicates"].remedy
    assert "MODEL.ROI_HEADS.NMS_THRESH_TEST 0.5" in remedy


def test_overlapping_objects_of_two_classes_are_no_duplicates():
    content = scene()
    found = detect(content)
    turn = {1: 3, 3: 4, 4: 7, 7: 12, 12: 1}
    second = altered(
        found, category_id=lambda d: turn[d["category_id"]], score=lambda d: 0.1 * d["score"]
    )
    assert codes(content, found + second) == []


def test_a_large_set_is_judged_by_a_sample_with_whole_counts(monkeypatch):
    monkeypatch.setattr(evidence, "SAMPLE_IMAGES", 10)
    content = scene()
    found = detect(content)
    assert codes(content, found) == []
    for detection in found:
        detection["category_id"] = {1: 3, 3: 1}.get(
            detection["category_id"], detection["category_id"]
        )
    result = findings(content, found)
    assert list(result) == ["classes_permuted", "AP"]
    low = altered(detect(content), score=lambda d: 0.1 * d["score"])
    assert "in 10 images" in findings(content, low)["low_scores"].message
    foreign = altered(detect(content), image_id=lambda d: d["image_id"] + 1000)
    assert "240 of 240" in findings(content, foreign)["image_ids_foreign"].message


def test_iou_is_pycocotools_own():
    random = np.random.default_rng(0)
    first, second = (random.uniform(0, 50, (20, 4)) for _ in range(2))
    second[0, 2] = 0  # without area
    expected = mask_util.iou(first, second, [0] * 20)
    np.testing.assert_allclose(evidence.box_iou(first, second), expected, atol=1e-12)


def test_the_page_lists_every_code():
    package = REPO / "resnext_det" / "evaluation"
    text = "".join(file.read_text() for file in package.glob("*.py"))
    written = set(re.findall(r'Finding\(\s*"(\w+)"', text))
    rows = (REPO / "docs" / "diagnosis.md").read_text().split("## Errors")[0]
    assert len(written) > 12
    assert set(re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)) == written
