"""Each mistake in an annotation file, its exact example, and what a fixed copy does with it."""

import copy
import itertools
import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest

from resnext_det.data.check import (
    category_tables,
    check_annotations,
    compare_categories,
    read_annotations,
)
from resnext_det.data.check_objects import decompressed
from resnext_det.data.check_summary import format_summary
from resnext_det.data.clean import cleaned, write_annotations
from resnext_det.data.finding_codes import CODES
from resnext_det.errors import UserError
from tests.data.test_check_fuzz import GOOD


def changed(*path, to):
    """GOOD with one value set; `to=...` takes the key away."""
    data = copy.deepcopy(GOOD)
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    if to is ...:
        del parent[path[-1]]
    elif path[-1] == "append":
        parent.append(to)
    else:
        parent[path[-1]] = to
    return data


def annotation(key, to):
    return changed("annotations", 0, key, to=to)


def image(key, to):
    return changed("images", 0, key, to=to)


def test_a_good_file_has_only_its_crowd_told():
    findings = check_annotations(GOOD).findings
    assert [f.code for f in findings.as_list()] == ["crowd"]
    assert findings["crowd"].examples == ["annotation 2 of image 1 (file 'a.jpg')"]
    assert findings.exit_status() == 0


A = "annotation 1 of image 1 (file 'a.jpg'): "
I = "image 1 (file 'a.jpg'): "  # noqa: E741
NAN = math.nan
REPEATED = {**GOOD["annotations"][0], "bbox": [0, 0, 1, 1]}
CASES = [
    ("categories-none", changed("categories", to=[]), None),
    ("category-type", changed("categories", 1, "name", to=...), "{'id': 1}"),
    ("category-type", changed("categories", 1, "id", to="1"), "{'id': '1', 'name': 'dog'}"),
    ("category-duplicate", changed("categories", 1, "id", to=3), "category 3: 'cat' and 'dog'"),
    ("category-name", changed("categories", 1, "name", to="cat"), "'cat' has ids [3, 1]"),
    (
        "category-empty",
        changed("categories", "append", to={"id": 0, "name": "x"}),
        "category 0: 'x'",
    ),
    (
        "image-empty",
        changed("annotations", 2, to=GOOD["annotations"][1]),
        "image 2 (file 'sub/b.jpg')",
    ),
    ("images-none", changed("images", to=[]), None),
    ("image-type", changed("images", 0, to=5), "5"),
    ("image-id", image("id", "1"), "image '1' (file 'a.jpg'): '1'"),
    ("image-id", image("id", True), "image True (file 'a.jpg'): True"),
    ("image-duplicate", image("id", 2), "image 2 (file 'sub/b.jpg')"),
    ("image-name", image("file_name", ...), "image 1 (file None): None"),
    ("image-name", image("file_name", "\0"), r"image 1 (file '\x00'): '\x00'"),
    ("image-outside", image("file_name", "../a.jpg"), "image 1 (file '../a.jpg'): '../a.jpg'"),
    ("image-outside", image("file_name", "/a.jpg"), "image 1 (file '/a.jpg'): '/a.jpg'"),
    ("image-same-file", image("file_name", "sub/b.jpg"), "'sub/b.jpg': images 1 and 2"),
    ("image-dimensions", image("width", "8"), I + "['8', 6]"),
    ("image-dimensions", image("height", 0), I + "[8, 0]"),
    ("annotations-none", changed("annotations", to=[]), None),
    ("annotation-type", changed("annotations", 0, to=[1]), "[1]"),
    ("annotation-id", annotation("id", "1"), "annotation '1' of image 1 (file 'a.jpg'): '1'"),
    ("annotation-zero-id", annotation("id", 0), "annotation 0 of image 1 (file 'a.jpg'): 0"),
    ("annotation-duplicate", changed("annotations", "append", to=REPEATED), A + "1"),
    ("annotation-image", annotation("image_id", 9), "annotation 1 of image 9 (file None): 9"),
    ("annotation-image", annotation("image_id", "1"), "annotation 1 of image '1' (file None): '1'"),
    ("annotation-category", annotation("category_id", 2), A + "2"),
    ("annotation-ignore", annotation("ignore", 1), A + "1"),
    ("crowd-missing", annotation("iscrowd", ...), A + "None"),
    ("crowd-bool", annotation("iscrowd", False), A + "False"),
    ("crowd-value", annotation("iscrowd", "0"), A + "'0'"),
    ("box-type", annotation("bbox", ...), A + "None"),
    ("box-type", annotation("bbox", [1, 2, "3", 4]), A + "[1, 2, '3', 4]"),
    ("box-type", annotation("bbox", [1, 2, True, 4]), A + "[1, 2, True, 4]"),
    ("box-nan", annotation("bbox", [1, NAN, 3, 4]), A + "[1, nan, 3, 4]"),
    ("box-nan", annotation("bbox", [1, 1, 10**12, 4]), A + "[1, 1, 1000000000000, 4]"),
    ("box-negative", annotation("bbox", [4, 4, -1, 2]), A + "[4, 4, -1, 2]"),
    ("box-zero", annotation("bbox", [4, 4, 0, 2]), A + "[4, 4, 0, 2]"),
    ("box-outside", annotation("bbox", [8, 0, 1, 1]), A + "[8, 0, 1, 1]"),
    ("box-outside", annotation("bbox", [0, -3, 1, 3]), A + "[0, -3, 1, 3]"),
    ("box-sticks-out", annotation("bbox", [5, 1, 4.5, 1]), A + "[5, 1, 4.5, 1]"),
    ("area", annotation("area", ...), A + "None"),
    ("area", annotation("area", "14"), A + "'14'"),
    ("segmentation-type", annotation("segmentation", [1, 1, 2, 2, 1, 2]), A + "[1, 1, 2, 2, 1, 2]"),
    ("polygon-short", annotation("segmentation", [[1, 1, 2, 2]]), A + "[1, 1, 2, 2]"),
    (
        "polygon-value",
        annotation("segmentation", [[1, 1, 2, 2, 3, NAN]]),
        A + "[1, 1, 2, 2, 3, nan]",
    ),
    (
        "rle",
        annotation("segmentation", {"size": [8, 6], "counts": [48]}),
        A + "its mask is 8 high and 6 wide, its image 6 and 8",
    ),
    (
        "rle",
        annotation("segmentation", {"size": [6, 8], "counts": [4, 8]}),
        A + "its 'counts' do not add up to height x width",
    ),
    (
        "rle",
        annotation("segmentation", {"size": [6, 8], "counts": "\u00e9"}),
        A + "its 'counts' are not run lengths",
    ),
    ("rle", annotation("segmentation", {"counts": [48]}), A + "its 'size' is not [height, width]"),
    ("mask-mixed", annotation("segmentation", []), A.removesuffix(": ")),
    ("keypoints", annotation("keypoints", [1, 2]), A + "[1, 2]"),
]
IDS = [f"{index}-{code}" for index, (code, _, _) in enumerate(CASES)]


@pytest.mark.parametrize(("code", "data", "example"), CASES, ids=IDS)
def test_a_mistake_is_found_and_shown(code, data, example):
    finding = check_annotations(data).findings[code]
    assert (finding.severity, finding.message) == CODES[code]
    assert finding.examples == ([example] if example else [])
    assert finding.count == 1


@pytest.mark.parametrize(("code", "data", "example"), CASES, ids=IDS)
def test_a_fixed_copy_has_no_error_and_the_input_stays(code, data, example):
    before = repr(data)
    findings = check_annotations(data).findings
    try:
        new, done = cleaned(data, findings)
    except UserError as error:
        assert code in str(error)
        assert code.startswith("categor")
        return
    assert repr(data) == before
    left = {f.code for f in check_annotations(new).findings.as_list() if f.severity == "error"}
    assert left <= {"images-none"}
    assert bool(done) == any(
        f.severity != "note" and f.code not in KEPT for f in findings.as_list()
    )


KEPT = {"category-name", "image-same-file", "images-none", "annotations-none", "mask-mixed"}


def test_every_message_is_whole():
    for code, (severity, message) in CODES.items():
        assert severity in ("error", "warning", "note")
        assert ": " in message or severity == "note" or ", " in message, code
        assert not message.endswith(".")


def test_a_finding_is_printed_with_its_message_and_five_examples():
    data = copy.deepcopy(GOOD)
    box = [0, 0, 0, 2]
    data["annotations"] = [{**GOOD["annotations"][0], "id": i, "bbox": box} for i in range(1, 8)]
    assert str(check_annotations(data).findings["box-zero"]).split("\n") == [
        "warning box-zero (7): boxes of zero width or height: training drops them in silence, "
        "evaluation counts them as missed; drop them",
        *(f"    annotation {i} of image 1 (file 'a.jpg'): [0, 0, 0, 2]" for i in range(1, 6)),
        "    ... and 2 more",
    ]


@pytest.mark.parametrize("ids", [(0, 1), (7, 300), (2, 1)])
def test_any_integer_category_ids_are_accepted(ids):
    data = copy.deepcopy(GOOD)
    renamed = dict(zip((1, 3), ids, strict=True))
    for entry, key in [(c, "id") for c in data["categories"]] + [
        (a, "category_id") for a in data["annotations"]
    ]:
        entry[key] = renamed[entry[key]]
    checked = check_annotations(data)
    assert checked.findings.exit_status() == 0
    assert [c["id"] for c in checked.statistics.as_dict()["classes"]] == sorted(ids)


def compared(theirs):
    here = check_annotations(GOOD)
    other = check_annotations({**GOOD, "categories": theirs})
    compare_categories(here.tables, other.tables, here.findings)
    found = [f for f in here.findings.as_list() if f.code.startswith("categories-")]
    return [(f.code, f.examples) for f in found]


def test_category_tables_are_compared_as_detectron2_numbers_them():
    cat, dog = {"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}
    assert compared([dog, cat]) == []
    assert compared([{**cat, "name": "cow"}, dog]) == [
        ("categories-differ", ["category 3: 'cat' here, 'cow' in --against"])
    ]
    assert compared([dog]) == [("categories-differ", ["category 3: 'cat' here, not in --against"])]
    code, examples = compared([{**dog, "id": 0}, {**cat, "id": 1}])[0]
    assert code == "categories-ids"
    assert examples[-1] == "category 0: 'dog' in --against, not here"


BAD_FILES = {
    "nothing": (b"", "is not JSON: Expecting value: line 1 column 1 (char 0)"),
    "text": (b"{", "is not JSON: Expecting property name enclosed in double quotes: line 1"),
    "gzip": (b"\x1f\x8b\x08", "is not UTF-8 text (byte 1): save it as UTF-8 JSON, not compressed"),
    "deep": (b"[" * 100_000, "is nested too deep to be a COCO annotation file"),
    "digits": (b"[" + b"1" * 5000 + b"]", "is not JSON: Exceeds the limit (4300 digits)"),
    "list": (b"[]", "holds a list, as files of detections do: COCO annotations are an object"),
    "number": (b"NaN", "is not a COCO annotation file: it holds one float"),
    "table": (b'{"images": {}}', ": 'images' is not a list but a dict"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_is_no_annotation_file_is_refused_in_one_line(kind, tmp_path):
    content, message = BAD_FILES[kind]
    file = tmp_path / "a.json"
    file.write_bytes(content)
    for read in (read_annotations, category_tables):
        with pytest.raises(UserError) as caught:
            read(file)
        assert str(caught.value).startswith(f"{file}{' ' * (kind != 'table')}{message}")
        assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^cannot read {tmp_path}/x: No such file or directory$"):
        read_annotations(tmp_path / "x")


def test_nan_in_a_file_is_told(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [], "x": [NaN, -Infinity]}')
    data, constants = read_annotations(tmp_path / "a.json")
    assert check_annotations(data, constants).findings["json-nan"].count == 2


@pytest.mark.parametrize("seed", range(5))
def test_compressed_runs_are_those_of_pycocotools(seed):
    shape = (37, 53)
    mask = np.random.default_rng(seed).random(shape) < (0.01, 0.1, 0.5, 0.9, 1)[seed]
    rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
    groups = [(bool(v), len(list(g))) for v, g in itertools.groupby(mask.ravel(order="F"))]
    expected = [length for _, length in groups]
    found = decompressed(rle["counts"].decode())
    assert found == ([0, *expected] if groups[0][0] else expected)


def test_a_box_is_clipped_and_everything_is_counted():
    data = annotation("bbox", [-2, 1, 4, 9])
    data["annotations"].append({**GOOD["annotations"][0], "id": 0, "area": None, "image_id": 2})
    new, done = cleaned(data, check_annotations(data).findings, unusable={0})
    assert [i["id"] for i in new["images"]] == [2]
    assert done == {
        "images dropped: missing or damaged file": 1,
        "annotations dropped: of a dropped image": 2,
        "annotations renumbered: id 0": 1,
        "annotations given the area of their box": 1,
    }
    assert (new["annotations"][-1]["id"], new["annotations"][-1]["area"]) == (4, 14)
    new, done = cleaned(data, check_annotations(data).findings)
    assert new["annotations"][0]["bbox"] == [0, 1, 2, 5]
    assert done["boxes clipped to their image"] == 1


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")
    with pytest.raises(TypeError):
        write_annotations({"images": [object()]}, file)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "old"


def test_the_summary_counts_objects_by_class():
    figures = check_annotations(GOOD).statistics.as_dict()
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["objects"], figures["crowds"], figures["small"]) == (2, 1, 2)
    assert figures["image_aspect"]["max"] == pytest.approx(8 / 6, abs=1e-3)
    rows = format_summary(figures).split("\n")[-2:]
    assert [r.split() for r in rows] == [
        ["0", "1", "1", "1", "1", "dog"],
        ["1", "3", "1", "0", "1", "cat"],
    ]
