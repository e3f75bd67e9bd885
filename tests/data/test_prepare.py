"""The paper's splits from a miniature val2014 and val2017, made of tiny_coco."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from resnext_det.data.coco_splits import KEYPOINT_SPLITS, SPLITS
from resnext_det.data.prepare import prepare_splits
from resnext_det.errors import UserError
from tests.helpers import TINY_COCO, needs_tiny_coco

KINDS = ("instances", "person_keypoints")
MADE = [f"{kind}_{part}2014.json" for kind in KINDS for part in ("minival", "valminusminival")]


def read(file):
    return json.loads(Path(file).read_text(encoding="utf-8"))


def tiny(kind, split):
    return read(TINY_COCO / f"annotations/{kind}_{split}.json")


def write_miniature(coco):
    """A 2014 tree as downloaded, with val2017's files: 25 + 75 images, 50 of these in val2017."""
    annotations = coco / "annotations"
    annotations.mkdir(parents=True)
    for kind in KINDS:
        train, val = tiny(kind, "train2017"), tiny(kind, "val2017")
        (annotations / f"{kind}_val2017.json").write_text(json.dumps(val))
        order = sorted(train["images"], key=lambda i: i["id"])
        images = {"train2014": order[:25], "val2014": order[25:] + val["images"]}
        for folder, listed in images.items():
            (coco / folder).mkdir(exist_ok=True)
            random.Random(0).shuffle(listed)
            ids = {i["id"] for i in listed}
            both = train["annotations"] + val["annotations"]
            content = {
                **val,
                "images": [{**i, "file_name": f"COCO_{folder}_{i['file_name']}"} for i in listed],
                "annotations": [a for a in both if a["image_id"] in ids],
            }
            (annotations / f"{kind}_{folder}.json").write_text(json.dumps(content))
    return coco


@pytest.fixture
def coco(tmp_path):
    return write_miniature(tmp_path / "coco")


def names(coco):
    return sorted(p.name for p in (coco / "annotations").iterdir())


def by_image(content):
    found = {i["id"]: [] for i in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(annotation)
    return found


@needs_tiny_coco
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_divide_val2014_with_its_own_entries(kind, coco):
    before = names(coco)
    prepare_splits(coco)
    assert names(coco) == sorted(before + MADE)
    folder = coco / "annotations"
    val = read(folder / f"{kind}_val2014.json")
    small = read(folder / f"{kind}_minival2014.json")
    rest = read(folder / f"{kind}_valminusminival2014.json")
    assert {i["id"] for i in small["images"]} == {i["id"] for i in tiny(kind, "val2017")["images"]}
    for section in ("images", "annotations"):  # disjoint, nothing lost, nothing changed
        key = "id"
        together = sorted(small[section] + rest[section], key=lambda e: e[key])
        assert together == sorted(val[section], key=lambda e: e[key])
    for part in (small, rest):
        assert {k: v for k, v in part.items() if k not in ("images", "annotations")} == {
            k: v for k, v in val.items() if k not in ("images", "annotations")
        }
        assert by_image(part).items() <= by_image(val).items()


@needs_tiny_coco
@pytest.mark.parametrize("name", [*SPLITS, *KEYPOINT_SPLITS])
def test_a_split_is_the_same_on_a_prepared_2014_tree_as_on_a_2017_tree(
    name, coco, tmp_path, monkeypatch
):
    prepare_splits(coco)
    (tmp_path / "2017").mkdir()
    (tmp_path / "2017/coco").symlink_to(TINY_COCO, target_is_directory=True)
    found = {}
    for layout, root in (("2014", tmp_path), ("2017", tmp_path / "2017")):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        records = DatasetCatalog.get(name)
        assert all(("COCO_" in Path(r["file_name"]).name) == (layout == "2014") for r in records)
        for record in records:
            record["file_name"] = Path(record["file_name"]).name[-len("000000000139.jpg") :]
        found[layout] = sorted(records, key=lambda r: r["image_id"])
    assert len(found["2014"]) == 50
    assert found["2014"] == found["2017"]


@needs_tiny_coco
def test_what_was_made_passes_the_check_and_is_not_made_twice(coco):
    prepare_splits(coco)
    lines = []
    prepare_splits(coco, check=True, say=lines.append)
    verified = [line for line in lines if line.startswith("verified ")]
    assert [line.split()[1].removesuffix(":") for line in verified] == [
        str(coco / "annotations" / name) for name in MADE
    ]
    assert "50 images, 382 annotations" in verified[0]
    content = (coco / "annotations" / MADE[0]).read_bytes()
    with pytest.raises(UserError) as caught:
        prepare_splits(coco)
    assert str(caught.value) == (
        f"{coco}/annotations/{MADE[0]} is there: --check verifies it, --force makes it again"
    )
    (coco / "annotations" / MADE[0]).write_text("old")
    prepare_splits(coco, force=True)
    assert (coco / "annotations" / MADE[0]).read_bytes() == content


@needs_tiny_coco
def test_a_part_of_val2014_is_said_to_be_one_and_the_training_set_is_counted(coco):
    lines = []
    prepare_splits(coco, say=lines.append)
    assert (
        "warning: instances_val2014.json has 75 images, not the 40,504 of the full val2014: "
        "the splits are not the paper's"
    ) in lines
    assert "coco_trainval35k: 25 + 25 = 50 images" in lines


@needs_tiny_coco
def test_keypoints_and_train2014_may_be_absent_which_is_said(coco):
    (coco / "annotations/person_keypoints_val2014.json").unlink()
    (coco / "annotations/instances_train2014.json").unlink()
    lines = []
    prepare_splits(coco, say=lines.append)
    assert not (coco / "annotations" / MADE[2]).exists()
    assert (
        "person_keypoints_val2014.json is not there: no person_keypoints files were made" in lines
    )
    assert (
        "instances_train2014.json is not there: the images of coco_trainval35k were not counted"
        in lines
    )


@needs_tiny_coco
def test_either_val2017_file_gives_the_image_ids(coco):
    (coco / "annotations/instances_val2017.json").unlink()
    prepare_splits(coco)
    small = read(coco / "annotations/instances_minival2014.json")
    expected = tiny("instances", "val2017")["images"]
    assert {i["id"] for i in small["images"]} == {i["id"] for i in expected}


def edit(name, change):
    """A change of one annotation file's content, or of its text."""

    def apply(folder):
        content = read(folder / name)
        new = change(content)
        (folder / name).write_text(new if isinstance(new, str) else json.dumps(content))

    return apply


def first(section, **values):
    return lambda content: content[section][0].update(values)


def repeat(section):
    return lambda content: content[section].append(content[section][0])


def absent(*files):
    def apply(folder):
        for file in files:
            (folder / file).unlink()

    return apply


V14, V17 = "instances_val2014.json", "instances_val2017.json"
# {first}, {image}: the first annotation's and image's id in val2014
BAD_INPUT = {
    "no val2014": (absent(V14), "{folder}/instances_val2014.json does not exist"),
    "no val2017": (
        absent(V17, "person_keypoints_val2017.json"),
        "{folder}/instances_val2017.json does not exist: its image ids are those of minival",
    ),
    "not JSON": (
        edit(V14, lambda c: "<html>"),
        "{folder}/instances_val2014.json is not a JSON file: a value is missing at '<html>'",
    ),
    "cut off": (
        edit(V14, lambda c: json.dumps(c)[:-1]),
        "{folder}/instances_val2014.json is not a JSON file: ',' or '}}' is missing at the end",
    ),
    "a list": (
        edit(V14, lambda c: "[]"),
        "{folder}/instances_val2014.json is not a COCO annotation file: "
        "annotation file format <class 'list'> not supported",
    ),
    "no images": (
        edit(V14, lambda c: c.pop("images") and None),
        "{folder}/instances_val2014.json has no 'images': it is not a COCO annotation file",
    ),
    "no annotations": (
        edit(V14, lambda c: c.pop("annotations") and None),
        "{folder}/instances_val2014.json has no 'annotations': it is not a COCO annotation file",
    ),
    "empty val2017": (
        edit(V17, lambda c: c.update(images=[], annotations=[])),
        "{folder}/instances_val2017.json lists no image",
    ),
    "annotations are null": (
        edit(V14, lambda c: c.update(annotations=None)),
        "{folder}/instances_val2014.json is not a COCO annotation file: "
        "'annotations' is not a list",
    ),
    "image without id": (
        edit(V14, lambda c: c["images"][0].pop("id") and None),
        "{folder}/instances_val2014.json: an image or annotation has no 'id'",
    ),
    "duplicate image": (
        edit(V14, repeat("images")),
        "{folder}/instances_val2014.json lists image id {image} twice",
    ),
    "duplicate image of val2017": (
        edit(V17, repeat("images")),
        "{folder}/instances_val2017.json lists image id 397133 twice",
    ),
    "duplicate annotation": (
        edit(V14, repeat("annotations")),
        "{folder}/instances_val2014.json has annotation id {first} twice",
    ),
    "annotation of an unknown image": (
        edit(V14, first("annotations", image_id=1)),
        "{folder}/instances_val2014.json: annotation {first} is of image 1, which is not listed",
    ),
    "another val2017": (
        edit(V17, first("images", id=1)),
        "1 of the 50 images of {folder}/instances_val2017.json are not in "
        "{folder}/instances_val2014.json (the first: 1): both must be the official files, or the "
        "same part of them",
    ),
    "not UTF-8": (
        lambda folder: (folder / V14).write_bytes(b'{"info": "\xff"}'),
        "{folder}/instances_val2014.json is not a JSON file: it is not UTF-8 text",
    ),
    "train2014 holds val2014": (
        lambda folder: (folder / "instances_train2014.json").write_bytes(
            (folder / V14).read_bytes()
        ),
        "{folder}/instances_train2014.json: 25 images are in instances_valminusminival2014.json "
        "too",
    ),
    "bad keypoints": (
        edit("person_keypoints_val2014.json", lambda c: "{"),
        "{folder}/person_keypoints_val2014.json is not a JSON file: a key is missing at the end",
    ),
}


@needs_tiny_coco
@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_named_in_one_line_and_nothing_is_written(what, coco):
    folder = coco / "annotations"
    val = read(folder / V14)
    damage, message = BAD_INPUT[what]
    damage(folder)
    before = names(coco)
    with pytest.raises(UserError) as caught:
        prepare_splits(coco)
    assert str(caught.value) == message.format(
        folder=folder, first=val["annotations"][0]["id"], image=val["images"][0]["id"]
    )
    assert names(coco) == before


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(UserError) as caught:
        prepare_splits(tmp_path)
    assert str(caught.value) == (
        f"there is no folder {tmp_path}/annotations: --coco names the folder with annotations/"
    )


def move_image(folder):
    """Put the first image of minival, without its annotations, into the other part too."""
    rest = read(folder / MADE[1])
    rest["images"].append(read(folder / MADE[0])["images"][0])
    (folder / MADE[1]).write_text(json.dumps(rest))


def drop_image(content):
    gone = content["images"].pop(0)["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]


# {image}: the id of minival's first image; {owner}: the image of its first annotation
DIFFERENCES = {
    "a box was moved": (
        edit(MADE[0], first("annotations", bbox=[0, 0, 1, 1])),
        "{small}: 1 images have other annotations than in instances_val2014.json (the first: "
        "{owner})",
    ),
    "an annotation is gone": (
        edit(MADE[0], lambda c: c["annotations"].pop(0) and None),
        "{small}: 1 images have other annotations than in instances_val2014.json (the first: "
        "{owner})",
    ),
    "a file name differs": (
        edit(MADE[0], first("images", file_name="000000397133.jpg")),
        "{small}: 1 images have other entries than in instances_val2014.json (the first: {image})",
    ),
    "a category is gone": (
        edit(MADE[0], lambda c: c["categories"].pop(0) and None),
        "{small}: other categories than in instances_val2014.json",
    ),
    "an image is gone": (
        edit(MADE[0], drop_image),
        "{folder}/instances_val2014.json: 1 images are in neither file (the first: {image}); "
        "{small}: 1 images of val2017 are missing (the first: {image})",
    ),
    "an image is in both": (
        move_image,
        "{small}: 1 images are in instances_valminusminival2014.json too (the first: {image}); "
        "{rest}: 1 images have other annotations than in instances_val2014.json (the first: "
        "{image})",
    ),
    "an annotation twice, as in the published files": (
        edit(MADE[0], repeat("annotations")),
        "{small} has annotation id {first} twice",
    ),
    "a file is gone": (absent(MADE[1]), "{rest} does not exist"),
}


@needs_tiny_coco
@pytest.mark.parametrize("what", DIFFERENCES)
def test_the_check_tells_each_difference(what, coco):
    prepare_splits(coco)
    folder = coco / "annotations"
    small = read(folder / MADE[0])
    counts = Counter(a["image_id"] for a in small["annotations"])
    small["images"].sort(key=lambda i: -counts[i["id"]])  # the first one has annotations
    (folder / MADE[0]).write_text(json.dumps(small))
    prepare_splits(coco, check=True)  # the order does not matter
    change, message = DIFFERENCES[what]
    change(folder)
    before = {name: (folder / name).read_bytes() for name in names(coco)}
    with pytest.raises(UserError) as caught:
        prepare_splits(coco, check=True)
    assert str(caught.value) == message.format(
        folder=folder,
        small=folder / MADE[0],
        rest=folder / MADE[1],
        image=small["images"][0]["id"],
        owner=small["annotations"][0]["image_id"],
        first=small["annotations"][0]["id"],
    )
    assert {name: (folder / name).read_bytes() for name in names(coco)} == before


@needs_tiny_coco
def test_the_check_does_without_val2017(coco):
    prepare_splits(coco)
    for kind in KINDS:
        (coco / f"annotations/{kind}_val2017.json").unlink()
    lines = []
    prepare_splits(coco, check=True, say=lines.append)
    assert (
        "instances_val2017.json is not there: minival's images were not compared with val2017's"
    ) in lines


def write_full_size(coco, minival=5_000, train=82_783):
    """As many images as the official files list, without objects."""
    (coco / "annotations").mkdir(parents=True)
    ids = random.Random(0).sample(range(1, 600_000), 40_504 + train)
    listed = {
        "val2014": ids[:40_504],
        "val2017": ids[1_000 : 1_000 + minival],
        "train2014": ids[40_504:],
    }
    for name, of_split in listed.items():
        content = {"images": [{"id": i} for i in of_split], "annotations": [], "categories": []}
        (coco / f"annotations/instances_{name}.json").write_text(json.dumps(content))
    return coco


def test_the_full_set_has_the_papers_counts(tmp_path):
    lines = []
    prepare_splits(write_full_size(tmp_path), say=lines.append)
    assert "coco_trainval35k: 82,783 + 35,504 = 118,287 images" in lines
    assert not any("warning" in line for line in lines)
    counts = [len(read(tmp_path / "annotations" / name)["images"]) for name in MADE[:2]]
    assert counts == [5_000, 35_504]
    prepare_splits(tmp_path, check=True)


def test_a_full_val2014_needs_5000_images_of_val2017(tmp_path):
    with pytest.raises(UserError) as caught:
        prepare_splits(write_full_size(tmp_path, minival=4_999))
    assert str(caught.value) == (
        f"{tmp_path}/annotations/instances_val2017.json lists 4,999 images, not the 5,000 of "
        "val2017, beside all 40,504 of val2014"
    )
    assert not any("minival" in name for name in names(tmp_path))


def test_a_full_val2014_needs_all_of_train2014(tmp_path):
    with pytest.raises(UserError) as caught:
        prepare_splits(write_full_size(tmp_path, train=82_782))
    assert str(caught.value) == (
        f"{tmp_path}/annotations/instances_train2014.json and instances_valminusminival2014.json "
        "have 118,286 images, not 118,287"
    )


def test_a_check_of_the_full_set_counts_each_part(tmp_path):
    prepare_splits(write_full_size(tmp_path))
    moved = []
    for name in reversed(MADE[:2]):
        content = read(tmp_path / "annotations" / name)
        content["images"] += moved
        moved = [content["images"].pop()]
        (tmp_path / "annotations" / name).write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        prepare_splits(tmp_path, check=True)
    assert f"{tmp_path}/annotations/{MADE[1]} has 35,503 images, not 35,504" in str(caught.value)
