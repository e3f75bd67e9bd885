import json
import shutil
from collections import Counter

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from resnext_det.data.coco_splits import SPLITS, find_split
from resnext_det.errors import UserError
from tests.helpers import TINY_COCO, needs_tiny_coco


@pytest.fixture
def tree_2017(tmp_path, monkeypatch):
    (tmp_path / "coco").symlink_to(TINY_COCO, target_is_directory=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path / "coco"


@pytest.fixture
def tree_2014(tmp_path, monkeypatch):
    """tiny_coco as the 2014 files have it: half of the training images lie in val2014."""
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    train = json.loads((TINY_COCO / "annotations/instances_train2017.json").read_text())
    val = json.loads((TINY_COCO / "annotations/instances_val2017.json").read_text())

    def write(data, images, folder, name):
        (coco / folder).mkdir(exist_ok=True)
        ids = {i["id"] for i in images}
        renamed = []
        for image in images:
            source = "val2017" if data is val else "train2017"
            new_name = f"COCO_{folder}_{image['file_name']}"
            shutil.copy(TINY_COCO / source / image["file_name"], coco / folder / new_name)
            renamed.append({**image, "file_name": new_name})
        annotations = [a for a in data["annotations"] if a["image_id"] in ids]
        content = {**data, "images": renamed, "annotations": annotations}
        (coco / "annotations" / name).write_text(json.dumps(content))

    write(train, train["images"][:25], "train2014", "instances_train2014.json")
    write(train, train["images"][25:], "val2014", "instances_valminusminival2014.json")
    write(val, val["images"], "val2014", "instances_minival2014.json")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return coco


def contents(records):
    """Image ids with their boxes and classes: what must not depend on the layout."""
    return {
        r["image_id"]: Counter((tuple(a["bbox"]), a["category_id"]) for a in r["annotations"])
        for r in records
    }


@needs_tiny_coco
@pytest.mark.parametrize("name", list(SPLITS))
def test_the_2017_layout_is_read(name, tree_2017):
    records = DatasetCatalog.get(name)
    folder = "train2017" if name == "coco_trainval35k" else "val2017"
    expected = json.loads((TINY_COCO / f"annotations/instances_{folder}.json").read_text())
    assert [r["image_id"] for r in records] == sorted(i["id"] for i in expected["images"])
    assert all(f"/{folder}/" in r["file_name"] for r in records)
    assert sum(len(r["annotations"]) for r in records) == len(expected["annotations"])


@needs_tiny_coco
@pytest.mark.parametrize("name", list(SPLITS))
def test_both_layouts_hold_the_same_objects(name, tree_2014, tmp_path_factory, monkeypatch):
    in_2014 = DatasetCatalog.get(name)
    assert all("COCO_" in r["file_name"] for r in in_2014)
    other = tmp_path_factory.mktemp("layout_2017")
    (other / "coco").symlink_to(TINY_COCO, target_is_directory=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(other))
    in_2017 = DatasetCatalog.get(name)
    assert all("COCO_" not in r["file_name"] for r in in_2017)
    assert contents(in_2014) == contents(in_2017)


@needs_tiny_coco
def test_minival_knows_its_annotation_file_after_loading(tree_2017):
    DatasetCatalog.get("coco_minival")
    json_file = MetadataCatalog.get("coco_minival").json_file
    assert json_file == str(tree_2017 / "annotations/instances_val2017.json")


@needs_tiny_coco
def test_a_part_of_a_split_is_said_to_be_one(tree_2017, caplog):
    DatasetCatalog.get("coco_minival")
    assert "50 images here, not the 5000" in caplog.text


def test_one_error_names_what_each_layout_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "coco" / "val2014").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        DatasetCatalog.get("coco_trainval35k")
    message = str(caught.value)
    assert (
        "2014 layout lacks train2014, annotations/instances_train2014.json, annotations/inst"
        in message
    )
    assert "2017 layout lacks train2017, annotations/instances_train2017.json" in message
    assert str(tmp_path / "coco") in message
    assert "DETECTRON2_DATASETS" in message
    assert "\n" not in message


def test_the_2014_files_win_where_both_are_there(tmp_path):
    for name in ("val2014", "val2017", "annotations"):
        (tmp_path / name).mkdir()
    for name in ("minival2014", "val2017"):
        (tmp_path / f"annotations/instances_{name}.json").touch()
    ((images, annotations),) = find_split("coco_minival", tmp_path)
    assert (images.name, annotations.name) == ("val2014", "instances_minival2014.json")


@pytest.mark.parametrize("content", ["{", '{"images": []}', "\ufeffnot json"])
def test_a_damaged_annotation_file_is_named(content, tmp_path, monkeypatch):
    (tmp_path / "coco/val2017").mkdir(parents=True)
    (tmp_path / "coco/annotations").mkdir()
    file = tmp_path / "coco/annotations/instances_val2017.json"
    file.write_text(content)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=f"{file} is not a COCO annotation file"):
        DatasetCatalog.get("coco_minival")


def test_both_splits_have_cocos_classes_before_any_file_is_read():
    for name in SPLITS:
        metadata = MetadataCatalog.get(name)
        assert len(metadata.thing_classes) == 80
        assert metadata.thing_classes == MetadataCatalog.get("coco_2017_val").thing_classes
        assert metadata.evaluator_type == "coco"
