"""Mutated annotation files: the doctor and the loader end in results or in a `UserError`."""

import copy
import json
import math

from detectron2.data import MetadataCatalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnext_det.data.check import check_annotations, compare_categories, read_annotations
from resnext_det.data.check_summary import format_summary
from resnext_det.data.clean import cleaned, write_annotations
from resnext_det.data.coco_splits import load_coco_file
from resnext_det.errors import UserError

GOOD = {
    "info": {"year": 2017},
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 8, "height": 6},
        {"id": 2, "file_name": "sub/b.jpg", "width": 5, "height": 5},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "bbox": [1, 1, 4, 3.5],
            "area": 14,
            "iscrowd": 0,
            "segmentation": [[1, 1, 5, 1, 5, 4.5], [1, 1, 2, 2, 1, 2]],
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 1,
            "bbox": [0, 0, 8, 6],
            "area": 8,
            "iscrowd": 1,
            "segmentation": {"size": [6, 8], "counts": [4, 8, 36]},
        },
        {
            "id": 3,
            "image_id": 2,
            "category_id": 1,
            "bbox": [0, 0, 2, 2],
            "area": 4,
            "iscrowd": 0,
            "segmentation": {"size": [5, 5], "counts": "0230?"},
            "keypoints": [1, 1, 2, 2, 2, 2],
        },
    ],
}

SPECIAL = (None, True, False, 0, -1, 1, 2, 2**31, 10**30, 10**400, -0.5, 1.5, 1e300, math.nan)
TEXTS = ("", "1", "a.jpg", "../x", "/etc/passwd", "\0", "\ud800", "{}", "0" * 30, "b\n")
SCALARS = st.sampled_from((*SPECIAL, math.inf, -math.inf, *TEXTS)) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(("id", "size", "counts", "name", "x")), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    """Every place in a JSON value, the value itself left out."""
    inner = value.items() if type(value) is dict else enumerate(value)
    for key, child in list(inner):
        yield (*path, key)
        if type(child) in (dict, list):
            yield from places(child, (*path, key))


@st.composite
def mutated(draw):
    """`GOOD` after up to four deletions, replacements, repetitions."""
    data = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(places(data)) or [()]))
        if not path:
            break
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(("replace", "replace", "delete", "repeat")))
        if action == "delete":
            del parent[path[-1]]
        elif action == "repeat" and type(parent) is list:
            parent.append(copy.deepcopy(parent[path[-1]]))
        else:
            parent[path[-1]] = draw(VALUES)
    return data


def load(file, root):
    """The loader's records, or None where it refuses the file in one short line."""
    name = "check_fuzz"
    try:
        return load_coco_file(file, root, name)
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return None
    finally:
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


def diagnose(file):
    """The doctor's result after all that the tool does with it, or None for a `UserError`."""
    try:
        data, constants = read_annotations(file)
    except UserError as error:
        assert "\n" not in str(error)
        return None
    before = repr(data)
    checked = check_annotations(data, constants)
    figures = checked.statistics.as_dict()
    json.dumps(figures, allow_nan=False)
    format_summary(figures).encode(errors="backslashreplace")
    compare_categories(checked.tables, check_annotations(GOOD).tables, checked.findings)
    for finding in checked.findings.as_list():
        assert len(finding.examples) <= 5
        assert finding.count >= 1
        assert all("\n" not in example and len(example) < 2000 for example in finding.examples)
    assert repr(data) == before
    return data, check_annotations(data).findings


SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@SETTINGS
@given(data=mutated())
def test_mutated_files_end_in_findings_that_the_loader_confirms(data, tmp_path):
    file = tmp_path / "fuzz.json"
    file.write_text(json.dumps(data))
    diagnosis, records = diagnose(file), load(file, tmp_path)
    if diagnosis is not None and diagnosis[1].exit_status() != 2:
        assert records is not None, "the doctor finds no error, the loader does"
        assert len(records) == len(diagnosis[0]["images"])


@SETTINGS
@given(data=mutated())
def test_a_fixed_file_has_no_error_left_and_loads(data, tmp_path):
    file, out = tmp_path / "fuzz.json", tmp_path / "fixed.json"
    file.write_text(json.dumps(data))
    diagnosis = diagnose(file)
    if diagnosis is None:
        return
    try:
        copied, _ = cleaned(*diagnosis)
    except UserError as error:
        assert "does not touch categories" in str(error)
        return
    write_annotations(copied, out)
    left = check_annotations(*read_annotations(out)).findings
    errors = {f.code for f in left.as_list() if f.severity == "error"}
    assert errors <= {"images-none"}
    assert (load(out, tmp_path) is None) == ("images-none" in errors)


@SETTINGS
@given(data=VALUES)
def test_any_json_value_is_refused_in_one_line(data, tmp_path):
    file = tmp_path / "fuzz.json"
    file.write_text(json.dumps(data))
    if type(data) is not dict:
        assert diagnose(file) is None
    assert load(file, tmp_path) is None


@SETTINGS
@given(content=st.binary(max_size=40) | st.text(max_size=40).map(lambda t: t.encode("utf-16")))
def test_any_bytes_are_refused_in_one_line(content, tmp_path):
    file = tmp_path / "fuzz.json"
    file.write_bytes(content)
    diagnosis = diagnose(file)
    assert diagnosis is None or diagnosis[1].exit_status() == 2
    assert load(file, tmp_path) is None
