"""Our reading of COCO files against Detectron2's `load_coco_json`."""

import gc
import itertools
import json
import random

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from resnext_det.data import records
from resnext_det.data.records import load_coco_records, scan_coco
from tests.helpers import TINY_COCO, needs_tiny_coco

FILES = ("instances_train2017", "instances_val2017", "person_keypoints_val2017")
_numbers = itertools.count()


def load_with(loader, file, images="images"):
    """A loader's records, classes and category ids, as a data set that no other test knows."""
    name = f"test_records_{next(_numbers)}"
    try:
        found = loader(str(file), str(images), name)
        metadata = MetadataCatalog.get(name)
        return found, metadata.thing_classes, metadata.thing_dataset_id_to_contiguous_id
    finally:
        MetadataCatalog.pop(name, None)


def small():
    """Three images in no order, whose annotations have each shape that the format knows."""
    box = {"bbox": [1, 2.5, 3, 4], "iscrowd": 0, "area": 12.0}
    polygon = [[1, 1.5, 9, 1, 9, 9.25]]
    counts = {"size": [4, 5], "counts": [3, 4, 13]}
    packed = {"size": [4, 5], "counts": "34=0"}
    shapes = [polygon, counts, [], packed, [[1, 2, 3, 4], *polygon], [[1, 2, 3, 4, 5, 6, 7]]]
    annotations = [
        {"id": 90 - i, "image_id": (7, 3)[i % 2], "category_id": (5, 2)[i % 2], **box}
        for i in range(len(shapes) + 1)
    ]
    for annotation, shape in zip(annotations, shapes, strict=False):
        annotation["segmentation"] = shape
    annotations[0]["keypoints"] = [1, 2, 2, 0, 0, 0, 3.5, 4, 1]
    annotations[1]["keypoints"] = []
    return {
        "info": {"year": 2014, "description": 'a "quoted" [bracket], \u00e9 \\ and {brace}'},
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 5, "license": 1}
            for i in (7, 11, 3)
        ],
        "annotations": annotations,
        "categories": [{"id": 5, "name": "five"}, {"id": 2, "name": "two"}],
    }


def write(tmp_path, content, name="instances.json"):
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@needs_tiny_coco
@pytest.mark.parametrize("name", FILES)
def test_real_files_give_what_detectron2_gives(name):
    file = TINY_COCO / f"annotations/{name}.json"
    ours, theirs = load_with(load_coco_records, file), load_with(load_coco_json, file)
    assert ours == theirs
    assert repr(ours) == repr(theirs)  # also the order of keys, and 1 is not 1.0
    objects = [o for r in ours[0] for o in r["annotations"]]
    assert any(isinstance(o["segmentation"], dict) for o in objects)  # crowds
    assert any("keypoints" in o for o in objects) == name.startswith("person")


@needs_tiny_coco
@pytest.mark.parametrize("ids", ["0-based", "sparse", "unsorted"])
def test_category_ids_are_renumbered_as_by_detectron2(ids, tmp_path):
    content = json.loads((TINY_COCO / "annotations/instances_val2017.json").read_text())
    old = [c["id"] for c in content["categories"]]
    new = {
        "0-based": list(range(len(old))),
        "sparse": [1000 - 7 * i for i in range(len(old))],
        "unsorted": random.Random(0).sample(range(1, len(old) + 1), len(old)),
    }[ids]
    renamed = dict(zip(old, new, strict=True))
    for category in content["categories"]:
        category["id"] = renamed[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = renamed[annotation["category_id"]]
    file = write(tmp_path, content)
    assert load_with(load_coco_records, file) == load_with(load_coco_json, file)


@pytest.mark.parametrize(
    "sections", list(itertools.permutations(["images", "annotations", "categories"]))
)
def test_every_shape_and_order_of_sections_gives_what_detectron2_gives(sections, tmp_path):
    content = small()
    file = write(tmp_path, {"info": content["info"], **{key: content[key] for key in sections}})
    ours, theirs = load_with(load_coco_records, file), load_with(load_coco_json, file)
    assert repr(ours) == repr(theirs)
    assert [r["image_id"] for r in ours[0]] == [3, 7, 11]
    assert [len(r["annotations"]) for r in ours[0]] == [2, 4, 0]  # the 7-number polygon is dropped


def test_annotations_of_unlisted_images_are_left_out_with_a_warning(tmp_path, caplog):
    content = small()
    content["images"].pop()
    content["annotations"][1]["ignore"] = 1  # of an unlisted image: Detectron2 does not look
    file = write(tmp_path, content)
    assert load_with(load_coco_records, file) == load_with(load_coco_json, file)
    assert f"{file}: 3 annotations are of images it does not list" in caplog.text


def test_a_file_without_annotations_gives_bare_images(tmp_path):
    content = small()
    del content["annotations"]
    file = write(tmp_path, content)
    assert load_with(load_coco_records, file) == load_with(load_coco_json, file)


def test_duplicate_annotation_ids_are_allowed_in_minival_files_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the folder's own name must not count
    content = small()
    content["annotations"][1]["id"] = content["annotations"][0]["id"]
    for name in ("instances.json", "instances_minival2014.json"):
        write(tmp_path, content, name)
    messages = []
    for loader in (load_coco_records, load_coco_json):
        with pytest.raises(AssertionError) as caught:
            load_with(loader, "instances.json")
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    minival = "instances_minival2014.json"
    assert load_with(load_coco_records, minival) == load_with(load_coco_json, minival)


def damaged(change):
    content = small()
    change(content)
    return content


DAMAGED = {
    "a list": [],
    "a number": "3",
    "no categories": damaged(lambda c: c.pop("categories")),
    "empty categories": damaged(lambda c: c["categories"].clear()),
    "image without id": damaged(lambda c: c["images"][0].pop("id")),
    "image without height": damaged(lambda c: c["images"][0].pop("height")),
    "annotation without id": damaged(lambda c: c["annotations"][0].pop("id")),
    "annotation without image": damaged(lambda c: c["annotations"][0].pop("image_id")),
    "annotation without category": damaged(lambda c: c["annotations"][0].pop("category_id")),
    "unknown category": damaged(lambda c: c["annotations"][0].update(category_id=9)),
    "ignore": damaged(lambda c: c["annotations"][0].update(ignore=1)),
    "empty box": damaged(lambda c: c["annotations"][0].update(bbox=[])),
    "RLE without counts": damaged(lambda c: c["annotations"][1]["segmentation"].pop("counts")),
    "polygon of numbers": damaged(lambda c: c["annotations"][0].update(segmentation=[1, 2, 3])),
    "images are null": damaged(lambda c: c.update(images=None)),
    "annotations are numbers": damaged(lambda c: c.update(annotations=[1, 2])),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_bad_file_raises_as_in_detectron2(what, tmp_path):
    file = write(tmp_path, DAMAGED[what])
    with pytest.raises(Exception) as theirs:
        load_with(load_coco_json, file)
    with pytest.raises(theirs.type) as ours:
        load_with(load_coco_records, file)
    if theirs.type in (AssertionError, KeyError):
        assert str(ours.value) == str(theirs.value)


def test_other_classes_than_the_metadata_has_are_refused_as_by_detectron2(tmp_path):
    file = write(tmp_path, small())
    for loader in (load_coco_records, load_coco_json):
        name = f"test_records_{next(_numbers)}"
        MetadataCatalog.get(name).thing_classes = ["cat"]
        with pytest.raises(AssertionError, match="thing_classes"):
            loader(str(file), "images", name)
        MetadataCatalog.pop(name)


def scanned(file):
    """The whole content, from the elements handed over and what was returned."""
    lists = {"images": [], "annotations": []}
    content = scan_coco(file, {key: found.append for key, found in lists.items()})
    assert all(content[key] == len(lists[key]) for key in lists if key in content)
    return {**content, **{key: lists[key] for key in lists if key in content}}


@pytest.mark.parametrize("indent", [None, 2])
def test_the_place_where_a_chunk_ends_does_not_matter(indent, tmp_path, monkeypatch):
    content = {**small(), "float": -1.5e-7, "whole": 1234, "none": None, "yes": True, "last": 2.5e3}
    file = write(tmp_path, json.dumps(content, indent=indent))
    for size in range(1, 80):
        monkeypatch.setattr(records, "_CHUNK", size)
        assert repr(scanned(file)) == repr(content)


def test_every_truncation_and_loss_of_a_character_is_judged_as_by_json(tmp_path):
    text = '{"images": [{"id": 1}, {"id": 20}], "a": [1, {}], "annotations": [], "n": 12}'
    cut = [text[:i] for i in range(len(text))]
    lost = [text[:i] + text[i + 1 :] for i in range(len(text))]
    for damaged_text in (*cut, *lost, text + "x", text + "{}", "\ufeff" + text, text + "\n"):
        file = write(tmp_path, damaged_text)
        try:
            expected = json.loads(damaged_text)
        except json.JSONDecodeError:
            with pytest.raises((ValueError, TypeError)):
                scanned(file)
        else:
            assert scanned(file) == expected


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_left_as_it_was_after_a_failure_too(enabled, tmp_path):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        load_with(load_coco_records, write(tmp_path, small()))
        with pytest.raises(json.JSONDecodeError):
            scanned(write(tmp_path, "{"))
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
