"""VOC folders and YOLO labels to COCO JSON, and what is said of bad ones."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from detectron2.data.datasets import load_coco_json
from PIL import Image
from torchvision.datasets import VOCDetection

from resnext_det.data.formats import write_json
from resnext_det.data.voc import VOC_CLASSES, convert_voc
from resnext_det.data.yolo import convert_yolo
from resnext_det.errors import UserError
from tests.helpers import TINY_COCO, needs_tiny_coco

BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def voc_object(name, corners, extra=""):
    return f"<object><name>{escape(name)}</name>{extra}{BOX.format(*corners)}</object>"


def voc_file(objects="", size=(40, 30), extra=""):
    width, height = size
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{extra}{size}{objects}</annotation>"


def make_voc(root, files, size=(40, 30)):
    """Write a VOC folder; `files` maps an id to its XML."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / f"Annotations/{name}.xml").write_text(text)
        Image.new("RGB", size).save(root / f"JPEGImages/{name}.jpg")
    return root


def make_yolo(root, labels, names="cat\ndog\n", size=(40, 30), folder="images/train"):
    """Write a YOLO folder; `labels` maps a name to the label file's text, or None for no file."""
    images = root / folder
    texts = root / folder.replace("images", "labels")
    images.mkdir(parents=True)
    texts.mkdir(parents=True)
    for name, text in labels.items():
        Image.new("RGB", size).save(images / f"{name}.png")
        if text is not None:
            (texts / f"{name}.txt").write_text(text)
    (root / "classes.txt").write_text(names)
    return root


def boxes(content):
    return [a["bbox"] for a in content["annotations"]]


def test_vocs_pixels_count_from_one_and_include_both_corners(tmp_path):
    objects = voc_object("cat", (1, 1, 40, 30)) + voc_object("cat", (5, 7, 5, 8))
    content, lines = convert_voc(make_voc(tmp_path, {"a": voc_file(objects)}))
    assert boxes(content) == [[0, 0, 40, 30], [4, 6, 1, 2]]
    assert [a["area"] for a in content["annotations"]] == [1200, 2]
    assert lines == ["1 images, 2 objects"]


def test_boxes_that_reach_out_are_clipped_and_counted(tmp_path):
    objects = voc_object("cat", (0, 1, 41, 30)) + voc_object("dog", (50, 50, 60, 60))
    content, lines = convert_voc(make_voc(tmp_path, {"a": voc_file(objects)}))
    assert boxes(content) == [[0, 0, 40, 30]]
    assert "1 boxes reached out of their image and were clipped to it" in lines
    assert "1 objects have no area inside their image: left out" in lines


@pytest.mark.parametrize("drop", [False, True])
def test_difficult_objects_are_kept_and_marked_or_dropped(drop, tmp_path):
    hard = voc_object("cat", (1, 1, 9, 9), "<difficult>1</difficult>")
    easy = voc_object("cat", (2, 2, 9, 9), "<difficult>0</difficult>")
    root = make_voc(tmp_path, {"a": voc_file(hard + easy)})
    content, lines = convert_voc(root, drop_difficult=drop)
    assert [a["difficult"] for a in content["annotations"]] == ([0] if drop else [1, 0])
    assert {a["iscrowd"] for a in content["annotations"]} == {0}
    assert ("left out" if drop else "COCO evaluation counts them") in lines[-1]


def test_what_is_lost_is_counted(tmp_path):
    part = f"<part><name>head</name>{BOX.format(30, 30, 31, 31)}</part><pose>Left</pose>"
    objects = voc_object("person", (1, 1, 9, 9), part) + voc_object("person", (1, 1, 9, 9))
    root = make_voc(tmp_path, {"a": voc_file(objects, extra="<segmented>1</segmented>")})
    content, lines = convert_voc(root)
    assert boxes(content) == [[0, 0, 9, 9]] * 2  # not the box of the part
    lost = "not carried over (how often met): object/part (1), object/pose (1), segmented (1)"
    assert lost in lines


def test_vocs_own_classes_keep_vocs_numbers(tmp_path):
    root = make_voc(tmp_path, {"a": voc_file(voc_object("tvmonitor", (1, 1, 9, 9)))})
    content, _ = convert_voc(root)
    assert [c["name"] for c in content["categories"]] == list(VOC_CLASSES)
    assert content["annotations"][0]["category_id"] == 20


def test_other_classes_are_sorted_and_a_second_split_takes_their_ids(tmp_path):
    objects = "".join(voc_object(n, (1, 1, 9, 9)) for n in ("zebra", "ant", "cat"))
    root = make_voc(
        tmp_path, {"a": voc_file(objects), "b": voc_file(voc_object("cat", (1, 1, 9, 9)))}
    )
    for split in "ab":
        (root / f"ImageSets/Main/{split}.txt").write_text(f"{split}\n\n")
    train, _ = convert_voc(root, "a")
    assert train["categories"] == [
        {"id": i, "name": n} for i, n in enumerate(("ant", "cat", "zebra"), start=1)
    ]
    file = tmp_path / "train.json"
    write_json(train, file)
    val, _ = convert_voc(root, "b", classes_from=file)
    assert val["categories"] == train["categories"]
    assert [a["category_id"] for a in val["annotations"]] == [2]

    train["categories"].pop(1)
    write_json(train, file)
    with pytest.raises(UserError, match=r"b\.xml: class 'cat' is not among those of .*train\.json"):
        convert_voc(root, "b", classes_from=file)


def test_sizes_are_those_of_the_upright_image(tmp_path):
    root = make_voc(tmp_path, {"a": voc_file(size=(30, 40))})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(root / "JPEGImages/a.jpg", exif=exif)
    content, _ = convert_voc(root)
    assert content["images"] == [{"id": 1, "file_name": "a.jpg", "width": 30, "height": 40}]


@needs_tiny_coco
def test_voc_agrees_with_torchvisions_reader_and_with_the_boxes_it_was_made_of(tmp_path):
    data = json.loads((TINY_COCO / "annotations/instances_val2017.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    root = tmp_path / "VOCdevkit/VOC2012"
    make_voc(root, {})
    for image in data["images"]:
        stem = Path(image["file_name"]).stem
        (root / f"JPEGImages/{stem}.jpg").symlink_to(TINY_COCO / "val2017" / image["file_name"])
        objects = ""
        for a in (a for a in data["annotations"] if a["image_id"] == image["id"]):
            x, y, w, h = a["bbox"]
            corners = [f"{v:.2f}" for v in (x + 1, y + 1, x + w, y + h)]
            objects += voc_object(names[a["category_id"]], corners)
        text = voc_file(objects, (image["width"], image["height"]))
        (root / f"Annotations/{stem}.xml").write_text(text)
    stems = [Path(i["file_name"]).stem for i in data["images"]]
    (root / "ImageSets/Main/val.txt").write_text("\n".join(stems))

    content, _ = convert_voc(root, "val")
    of_image = {i["id"]: i["file_name"] for i in content["images"]}
    ours = [(of_image[a["image_id"]], a) for a in content["annotations"]]
    new_names = {c["id"]: c["name"] for c in content["categories"]}

    theirs = []
    reader = VOCDetection(tmp_path, year="2012", image_set="val")
    for index, path in enumerate(reader.images):
        image, target = reader[index]
        assert image.size == tuple(content["images"][index][k] for k in ("width", "height"))
        for item in target["annotation"]["object"]:
            corners = [float(item["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")]
            theirs.append((Path(path).name, item["name"], corners))
    assert [(f, new_names[a["category_id"]]) for f, a in ours] == [t[:2] for t in theirs]
    got = np.array([a["bbox"] for _, a in ours])
    corners = np.array([t[2] for t in theirs])
    np.testing.assert_allclose(got[:, :2], corners[:, :2] - 1, atol=0.01)
    np.testing.assert_allclose(got[:, 2:], corners[:, 2:] - corners[:, :2] + 1, atol=0.02)
    order = {i["id"]: k for k, i in enumerate(data["images"])}
    source = sorted(data["annotations"], key=lambda a: order[a["image_id"]])
    np.testing.assert_allclose(got, [a["bbox"] for a in source], atol=0.02)


@needs_tiny_coco
def test_yolo_gives_back_the_boxes_and_polygons_it_was_made_of(tmp_path):
    data = json.loads((TINY_COCO / "annotations/instances_val2017.json").read_text())
    ids = [c["id"] for c in data["categories"]]
    for folder in ("images", "labels"):
        (tmp_path / folder / "val").mkdir(parents=True)
    names = {i: c["name"] for i, c in enumerate(data["categories"])}
    (tmp_path / "data.yaml").write_text(
        json.dumps({"nc": len(names), "names": list(names.values())})
    )
    source = []
    for image in sorted(data["images"], key=lambda i: i["file_name"]):
        (tmp_path / "images/val" / image["file_name"]).symlink_to(
            TINY_COCO / "val2017" / image["file_name"]
        )
        lines = []
        side = np.array([image["width"], image["height"]])
        for a in (a for a in data["annotations"] if a["image_id"] == image["id"]):
            one_part = isinstance(a["segmentation"], list) and len(a["segmentation"]) == 1
            x, y, w, h = a["bbox"]
            values = np.array([x + w / 2, y + h / 2, w, h]) / np.tile(side, 2)
            if one_part:
                values = (np.reshape(a["segmentation"][0], (-1, 2)) / side).ravel()
            lines.append(
                " ".join([str(ids.index(a["category_id"])), *(f"{v:.8f}" for v in values)])
            )
            source.append((a, one_part))
        (tmp_path / "labels/val" / image["file_name"]).with_suffix(".txt").write_text(
            "\n".join(lines)
        )
    content, _ = convert_yolo(tmp_path, "val")
    assert [ids[a["category_id"] - 1] for a in content["annotations"]] == [
        a["category_id"] for a, _ in source
    ]
    assert sum(one for _, one in source) > 100
    for ours, (theirs, one_part) in zip(content["annotations"], source, strict=True):
        if one_part:
            np.testing.assert_allclose(ours["segmentation"], theirs["segmentation"], atol=0.01)
            np.testing.assert_allclose(ours["bbox"], theirs["bbox"], atol=1.01)
            np.testing.assert_allclose(ours["area"], theirs["area"], rtol=0.01, atol=1)
        else:
            np.testing.assert_allclose(ours["bbox"], theirs["bbox"], atol=0.01)


def test_detectron2_reads_the_result(tmp_path):
    objects = voc_object("cat", (1, 1, 9, 9), "<difficult>1</difficult>")
    root = make_voc(tmp_path, {"a": voc_file(objects), "b": voc_file()})
    write_json(convert_voc(root)[0], tmp_path / "out.json")
    records = load_coco_json(str(tmp_path / "out.json"), str(root / "JPEGImages"))
    assert [Path(r["file_name"]).is_file() for r in records] == [True, True]
    assert [[a["bbox"] for a in r["annotations"]] for r in records] == [[[0, 0, 9, 9]], []]


@pytest.mark.parametrize("layout", ["images/train", "train/images"])
def test_yolo_lines_are_fractions_of_width_and_height(layout, tmp_path):
    labels = {"a": "1 0.5 0.5 0.5 0.2\n\n0 0 0 1 0 1 1\n", "b": "", "c": None}
    content, lines = convert_yolo(make_yolo(tmp_path, labels, folder=layout), "train")
    assert boxes(content) == [[10, 12, 20, 6], [0, 0, 40, 30]]
    assert [a["category_id"] for a in content["annotations"]] == [2, 1]
    triangle = content["annotations"][1]
    assert triangle["segmentation"] == [[0, 0, 40, 0, 40, 30]] and triangle["area"] == 600
    assert "segmentation" not in content["annotations"][0]
    assert [i["file_name"] for i in content["images"]] == ["a.png", "b.png", "c.png"]
    assert lines[-1].startswith("1 images have no label file")


def test_yolo_names_come_in_the_order_of_their_numbers(tmp_path):
    root = make_yolo(tmp_path, {"a": "10 0.5 0.5 0.5 0.2"})
    (root / "data.yaml").write_text("names: {10: k, 9: j, 0: a, 1: b, 2: c, 3: d, 4: e, 5: f, "
                                    "6: g, 7: h, 8: i}")  # fmt: skip
    content, _ = convert_yolo(root)
    assert [c["name"] for c in content["categories"]] == list("abcdefghijk")
    assert content["annotations"][0]["category_id"] == 11
    assert content["images"][0]["file_name"] == "train/a.png"


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>'
BAD_VOC = {
    "not well-formed": ("<annotation>", r"a\.xml is not well-formed XML: no element found"),
    "entities": (BOMB, r"a\.xml has a <!DOCTYPE>"),
    "entities in UTF-16": (BOMB, r"a\.xml has a <!DOCTYPE>"),
    "encoding": ('<?xml version="1.0" encoding="x"?><annotation/>', r"a\.xml is not well-formed"),
    "another root": ("<html/>", r"a\.xml is no VOC annotation: its root is <html>"),
    "no size": ("<annotation/>", r"a\.xml: <annotation> has no size/width"),
    "another size": (voc_file(size=(30, 40)), r"a\.xml says its image has 30 x 40 pixels, but it"),
    "no box": (voc_file("<object><name>cat</name></object>"), r"a\.xml: <object> has no bndbox/xm"),
    "no name": (voc_file(voc_object(" ", (1, 1, 2, 2))), r"a\.xml: an object has no <name>"),
    "backwards": (voc_file(voc_object("cat", (9, 1, 8, 2))), r"a\.xml: the box of a cat ends bef"),
    "no number": (voc_file(voc_object("cat", ("x", 1, 8, 2))), r"a\.xml: bndbox/xmin is 'x', not"),
    "nan": (voc_file(voc_object("cat", ("nan", 1, 8, 2))), r"a\.xml: bndbox/xmin is 'nan', not"),
}


@pytest.mark.parametrize("case", BAD_VOC)
def test_a_bad_voc_file_is_named(case, tmp_path):
    text, message = BAD_VOC[case]
    root = make_voc(tmp_path, {"a": text})
    if "UTF-16" in case:
        (root / "Annotations/a.xml").write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match=message) as caught:
        convert_voc(root)
    assert "\n" not in str(caught.value)


def test_an_image_that_is_absent_outside_or_no_image_is_named(tmp_path):
    root = make_voc(
        tmp_path / "voc", {"a": voc_file(extra="<filename>../../secret.jpg</filename>")}
    )
    image = root / "JPEGImages/a.jpg"
    image.rename(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match=r"a\.xml names '../../secret.jpg', outside of .*JPEGImag"):
        convert_voc(root)
    (root / "Annotations/a.xml").write_text(voc_file(extra="<filename>b.jpg</filename>"))
    with pytest.raises(UserError, match=r"a\.xml: its image .*JPEGImages/b\.jpg does not exist"):
        convert_voc(root)
    image.write_text("not an image")
    with pytest.raises(UserError, match=r"a\.xml: its image .*a\.jpg cannot be read"):
        convert_voc(root)


def test_folders_and_lists_that_are_absent_are_named(tmp_path):
    with pytest.raises(UserError, match=r"Annotations does not exist"):
        convert_voc(tmp_path)
    root = make_voc(tmp_path, {"a": voc_file()})
    (root / "ImageSets/Main/val.txt").write_text("../Annotations/a\n")
    with pytest.raises(UserError, match=r"train\.txt does not exist; .* has val$"):
        convert_voc(root, "train")
    with pytest.raises(UserError, match=r"val\.txt names '../Annotations/a', outside of"):
        convert_voc(root, "val")
    (root / "ImageSets/Main/val.txt").write_text("b\n")
    with pytest.raises(UserError, match=r"val\.txt names 'b', but .*b\.xml does not exist"):
        convert_voc(root, "val")


BAD_LINES = {
    "2 0.5 0.5 0.1 0.1": "class 2 is none of the 2 named, 0 to 1",
    "-1 0.5 0.5 0.1 0.1": "class -1 is none",
    "0.5 0.5 0.5 0.1 0.1": "class 0.5 is none",
    "0 20 15 8 6": "20 is not normalised",
    "0 nan 0.5 0.1 0.1": "nan is not normalised",
    "0 0.5 0.5 0.1": "has 4 fields: a box has 5",
    "0 0.5 0.5 0.1 0.1 0.9": r"has 6 fields \(6: a prediction with its score\?\)",
    "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4": "has 8 fields",
    "cat 0.5 0.5 0.1 0.1": "could not convert string to float: 'cat'",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_yolo_line_is_named_with_its_number(line, tmp_path):
    root = make_yolo(tmp_path, {"a": f"0 0.5 0.5 0.1 0.1\n{line}\n"})
    with pytest.raises(UserError, match=rf"labels/train/a\.txt, line 2:? {BAD_LINES[line]}"):
        convert_yolo(root, "train")


def test_yolo_folders_that_do_not_fit_together_are_named(tmp_path):
    root = make_yolo(tmp_path, {"a": ""})
    with pytest.raises(UserError, match=r"images/val does not exist"):
        convert_yolo(root, "val")
    with pytest.raises(UserError, match="together, or neither"):
        convert_yolo(root, images=root)
    (root / "labels/train/b.txt").write_text("")
    with pytest.raises(UserError, match=r"labels/train/b\.txt has no image in"):
        convert_yolo(root, "train")
    Image.new("RGB", (4, 4)).save(root / "images/train/a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png share a label file"):
        convert_yolo(root, "train")
    (root / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"has none of data\.yaml, .* with --names"):
        convert_yolo(root, "train")


@pytest.mark.parametrize("text", ["nc: 2", "names: 3", "names: {0: a, 2: b}", "names: [a, a]", "["])
def test_a_bad_data_yaml_is_named(text, tmp_path):
    root = make_yolo(tmp_path, {"a": ""})
    (root / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=r"data\.yaml") as caught:
        convert_yolo(root)
    assert "\n" not in str(caught.value)


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    labels = {n: "0 0.5 0.5 0.1 0.1" for n in "cab"}
    root = make_yolo(tmp_path, labels)
    for name in ("one", "two"):
        write_json(convert_yolo(root)[0], tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path):
    old = tmp_path / "out.json"
    old.write_text("old")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json({"a": float("nan")}, old)
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]
