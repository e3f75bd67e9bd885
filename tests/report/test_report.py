import json

import pytest

from resnext_det.errors import UserError
from resnext_det.report import write_report
from tests.helpers import REPO, run_tool
from tests.report.runs import CLASSES, START, Page, evaluation, undefined, write_data, write_run

NASTY = "<script>alert('1')</script>"


@pytest.fixture
def make(tmp_path):
    """Makes a run with one test set, and gives its folder."""

    def make(content=None, *, name="run", classes=CLASSES, images=4, names="{}.png", **options):
        data = write_data(tmp_path / f"data-{name}", classes, images=images, names=names)
        content = content or evaluation(classes, images=images)
        return write_run(tmp_path / name, {"custom_val": data}, {"custom_val": content}, **options)

    return make


def test_its_figures_are_those_of_the_evaluation(make):
    content = evaluation(tasks=("bbox", "segm"))
    page = Page(write_report(make(content)))
    shown = {a["data-figure"]: a["data-value"] for a in page.with_attribute("data-figure")}
    for task in ("bbox", "segm"):
        for label, value in content["tasks"][task]["figures"].items():
            assert float(shown[f"custom_val d1-{task} {label}"]) == value
            assert f"{value:.1f}" in page.text
    for name in CLASSES:
        wanted = [
            [str(c["objects"])]
            + [f"{c[k]:.1f}" for k in ("AP", "AP50", "AP75", "AR", "precision", "recall")]
            for task in content["tasks"].values()
            for c in task["classes"]
            if c["name"] == name
        ]
        confusion = [
            [str(v) for v in task["confusion"]["matrix"][CLASSES.index(name)]]
            for task in content["tasks"].values()
        ]
        rows = page.rows_named(name)
        assert sorted(rows) == sorted([*wanted, *confusion])
    errors = content["tasks"]["bbox"]["errors"]
    assert page.rows_named("missed")[0][:2] == [
        f"{errors['delta']['missed']:.1f}",
        str(errors["counts"]["missed"]),
    ]


def test_it_says_what_the_run_was(make):
    page = Page(write_report(make()))
    for words in ("Run of 2026-01-02 03:04", "0123abc", "a.py", "torch 2.14.1", "feed", "val.json"):
        assert words in page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "train_net.py --config-file quick/x OUTPUT_DIR out" in page.text
    assert "NUM_GROUPS: 8" in page.text


def test_what_a_start_did_not_record_is_not_made_up(make):
    run = make()
    write(run, "run.json", [{"time": "2026-01-02", "git": {"commit": "0123abc"}}])
    page = Page(write_report(run))
    assert "0123abc" in page.text and "unchanged" not in page.text
    assert page.text.count("not recorded") == 3  # command, seed, device


def test_it_names_no_place_that_the_config_does_not_name(make):
    assert "/home/someone" not in write_report(make()).read_text()


def test_it_needs_no_network(make):
    page = Page(write_report(make()))
    for _, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "action"):
            assert attributes.get(key, "#").startswith(("#", "data:")), attributes


def test_foreign_text_is_text(make):
    classes = (NASTY, "a & b", '" onload="alert(1)')
    content = evaluation(classes)
    content["tasks"]["bbox"]["findings"] = [
        {"code": "x", "message": f"it was {NASTY}", "remedy": "<b>mend</b> it"}
    ]
    found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 16], "score": 0.9}]
    run = make(
        content, name="<i>run</i>"[3:6] + "<b>", classes=classes, names="<i>{}&.png",
        detections={"custom_val": found},
    )  # fmt: skip
    page = Page(write_report(run))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert {"b", "i"}.isdisjoint(tag for tag, _ in page.tags)
    assert not page.with_attribute("onload")
    assert f"It was {NASTY}. <b>mend</b> it." in page.text
    assert page.rows_named(NASTY)
    assert "run<b>" in page.text and "<i>0&.png" in page.text
    assert any(NASTY in a["alt"] for a in page.with_attribute("alt"))


def test_every_id_is_there_once_and_every_reference_has_its_target(make):
    page = Page(write_report(make(evaluation(tasks=("bbox", "segm")))))
    ids = [a["id"] for a in page.with_attribute("id")]
    assert len(ids) == len(set(ids))
    for key in ("href", "xlink:href", "aria-labelledby"):
        for attributes in page.with_attribute(key):
            target = attributes[key].removeprefix("#")
            assert target in ids or target.startswith("data:"), target


def test_the_same_run_gives_the_same_bytes(make, tmp_path):
    run = make()
    first = write_report(run, tmp_path / "1.html").read_bytes()
    assert write_report(run, tmp_path / "2.html").read_bytes() == first


def test_a_page_that_fails_leaves_the_old_one(make, monkeypatch):
    run = make()
    old = write_report(run).read_bytes()
    monkeypatch.setattr("resnext_det.atomic.os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(run, images=0)
    assert (run / "report.html").read_bytes() == old
    assert not list(run.glob(".*"))


def test_masks_and_keypoints_have_their_parts(make):
    tasks = ("bbox", "segm", "keypoints")
    polygon = [[10.0, 10, 30, 10, 30, 26]]
    entry = {
        "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 16], "score": 0.9,
        "segmentation": {"size": [48, 64], "counts": [100, 40, 2932]},
        "keypoints": [12, 12, 0.7, 25, 20, 0.1],
    }  # fmt: skip
    found = [entry, {**entry, "segmentation": polygon}]
    page = Page(write_report(make(evaluation(tasks=tasks), detections={"custom_val": found})))
    for part in ("Boxes: errors", "Masks: errors", "Keypoints: classes"):
        assert part in page.text
    assert "at OKS 0.5" in page.text and "Curves of the classes, OKS 0.5" in page.text
    assert "Keypoints: errors" not in page.text and "Keypoints: confusion" not in page.text
    with_masks = [a["src"] for t, a in page.tags if t == "img"]
    plain = make(evaluation(), name="plain", detections={"custom_val": found})
    assert with_masks != [a["src"] for t, a in Page(write_report(plain)).tags if t == "img"]


def test_undefined_figures_are_said_to_be(make):
    page = Page(write_report(make(undefined(evaluation()))))
    assert all(a["data-value"] == "" for a in page.with_attribute("data-figure"))
    assert page.rows_named("circle")[0] == ["0", *["n/a"] * 6]
    results = page.text.split("config.yaml")[0]
    assert "None" not in results and " nan" not in results.lower()


def test_eighty_classes_are_readable(make):
    classes = [f"class {i}" for i in range(80)]
    content = evaluation(classes)
    content["tasks"]["bbox"]["confusion"]["matrix"][3][7] = 1000
    written = write_report(make(content, classes=classes))
    assert written.stat().st_size < 5e6
    page = Page(written)
    assert page.rows_named("class 3")[0][:2] == ["class 7", "1000"]  # the largest of all
    assert sum(a.get("class") == "spark" for a in page.with_attribute("class")) == 80
    assert page.rows_named("80")[0][0] == "class 79"  # its number in the picture


def test_every_object_and_prediction_is_named_below_its_picture(make):
    entry = {"image_id": 1, "bbox": [10, 10, 20, 16]}
    found = [
        {**entry, "category_id": i % 3 + 1, "score": round(0.9 - i / 100, 2)} for i in range(12)
    ]
    page = Page(write_report(make(images=1, detections={"custom_val": found})))
    assert "Ground truth: circle" in page.text
    assert "Predictions: 12" in page.text  # folded
    for number, entry in enumerate(found):
        wrong = " (wrong)" if number else ""
        assert f"{CLASSES[number % 3]} {entry['score']:.2f}{wrong}" in page.text


def test_one_image_is_shown_once(make):
    page = Page(write_report(make(images=1)))
    assert "Best images" in page.text and "Worst images" not in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 2


def test_nothing_found_and_nothing_to_find(make):
    page = Page(write_report(make(detections={"custom_val": []})))
    assert "circle (missed)" in " ".join(a["alt"] for a in page.with_attribute("alt"))
    assert "n/a" not in page.text.split("Images of")[1].split("The run")[0]


def test_a_folder_that_was_only_evaluated_has_no_curves_and_says_so(make):
    page = Page(write_report(make(trained=False)))
    assert "Nothing was trained in this folder" in page.text
    assert "The run left no date" in page.text and "no run.json" in page.text


def test_each_test_set_has_its_sections(tmp_path):
    names = ("custom_val", "custom_val_2")
    data = {name: write_data(tmp_path / name) for name in names}
    contents = {name: evaluation(seed=i, dataset=name) for i, name in enumerate(names)}
    page = Page(write_report(write_run(tmp_path / "run", data, contents)))
    shown = {a["data-figure"]: a["data-value"] for a in page.with_attribute("data-figure")}
    for number, name in enumerate(names, 1):
        assert f"Results on {name}" in page.text and f"Images of {name}" in page.text
        wanted = contents[name]["tasks"]["bbox"]["figures"]["AP"]
        assert float(shown[f"{name} d{number}-bbox AP"]) == wanted


def test_a_part_of_the_set_and_augmentation_are_said(make):
    content = {**evaluation(), "limit": 2, "images": 2, "tta": True}
    page = Page(write_report(make(content)))
    assert "the first 2 of the set alone" in page.text and "test-time augmentation" in page.text
    names = {
        a["alt"].split(" of ")[1][:1] for a in page.with_attribute("alt") if " of " in a["alt"]
    }
    assert names == {"0", "1"}  # 2.png and 3.png were not evaluated


@pytest.mark.parametrize(
    ("config", "images", "limit", "shown"),
    [
        ("faster_rcnn_X50_32x4d", 5000, None, True),
        ("faster_rcnn_X50_32x4d", 50, None, False),
        ("faster_rcnn_X50_32x4d", 5000, 5000, False),
        ("faster_rcnn_X50_32x4d_FPN", 5000, None, False),
    ],
)
def test_the_papers_figures_stand_beside_its_own_row_alone(
    config, images, limit, shown, tmp_path, monkeypatch
):
    monkeypatch.setattr("tests.report.runs.QUICK", config)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))  # where there is none
    content = evaluation(dataset="coco_minival", images=images)
    content["limit"] = limit
    content["tasks"]["bbox"]["figures"].update(AP=26.0, AP50=51.0)
    run = write_run(tmp_path / "run", {}, {"coco_minival": content})
    page = Page(write_report(run))
    rows = [page.rows_named(label) for label in ("AP50", "AP")]
    beside = [[["51.0", "49.7", "+1.3"]], [["26.0", "27.5", "\N{MINUS SIGN}1.5"]]]  # Table 8
    assert rows == (beside if shown else [[], []])
    assert ("Table 8" in page.text) is shown
    assert (
        "The images cannot be shown: the data set coco_minival is not on this machine" in page.text
    )


def test_a_proposal_network_is_refused(make):
    run = make(overrides=("MODEL.META_ARCHITECTURE", "ProposalNetwork"))
    with pytest.raises(UserError, match="run of a proposal network: only detectors"):
        write_report(run)


def test_a_data_set_that_is_not_there_is_said_without_its_place(make, tmp_path, caplog):
    run = make()
    (tmp_path / "data-run/val.json").unlink()
    text = write_report(run).read_text()
    assert "The images cannot be shown: the data set custom_val is not on this machine" in text
    assert "val.json" in caplog.text and str(tmp_path / "data-run") not in text


@pytest.mark.parametrize("name", ["coco_2017_val", "lvis_v1_val"])
def test_a_set_of_detectron2s_own_that_is_not_there_is_said(name, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)  # where Detectron2 looks for ./datasets
    run = write_run(tmp_path / "run", {}, {name: evaluation(dataset=name)})
    page = Page(write_report(run))
    assert f"The images cannot be shown: the data set {name} is not on this machine" in page.text
    assert "the report shows no images: " in caplog.text


def test_an_image_that_is_absent_or_damaged_is_named_and_the_others_are_shown(make, tmp_path):
    run = make()
    (tmp_path / "data-run/0.png").unlink()
    (tmp_path / "data-run/1.png").write_bytes(b"\x89PNG not")
    page = Page(write_report(run))
    assert "Cannot read image 0.png: there is no such file." in page.text
    assert "Cannot read image 1.png: it is none of" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 4


def write(run, name, content):
    (run / name).write_text(content if isinstance(content, str) else json.dumps(content))


def without(*keys):
    """An evaluation that lacks what these keys lead to."""
    content = evaluation()
    node = content
    for key in keys[:-1]:
        node = node[key]
    del node[keys[-1]]
    return content


def ragged():
    content = evaluation()
    content["tasks"]["bbox"]["confusion"]["matrix"].pop()
    return content


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is no folder of a run"),
        (
            lambda run: (run / "inference/evaluation.json").unlink(),
            r"evaluation.json is absent: evaluate again, by tools/train_net.py --eval-only",
        ),
        (lambda run: write(run, "inference/evaluation.json", "{"), "evaluation.json is damaged"),
        (lambda run: write(run, "inference/evaluation.json", "[]"), "the file is no object"),
        (lambda run: write(run, "inference/evaluation.json", without("tasks")), "tasks is no obj"),
        (
            lambda run: write(
                run, "inference/evaluation.json", without("tasks", "bbox", "classes", 0, "name")
            ),
            "a class has no name",
        ),
        (
            lambda run: write(
                run,
                "inference/evaluation.json",
                without("tasks", "bbox", "curves", "precision", "0.50", 0),
            ),
            "precision at 0.50 has not 101 points",
        ),
        (lambda run: write(run, "inference/evaluation.json", ragged()), "matrix is not square"),
        (lambda run: write(run, "metrics.json", "{\n"), "not a readable metrics.json"),
        (lambda run: write(run, "run.json", "{}"), "run.json is damaged"),
        (lambda run: write(run, "run.json", [{**START, "git": {}}]), "git has no commit"),
        (lambda run: write(run, "run.json", [{**START, "git": "x"}]), "git is no object"),
        (lambda run: write(run, "run.json", [{**START, "config_changes": 1}]), "config_changes is"),
        (lambda run: write(run, "run.json", [{**START, "processes": "x"}]), "processes is no num"),
        (lambda run: write(run, "run.json", [{**START, "datasets": {"a": 1}}]), "data set a is no"),
        (lambda run: write(run, "datasets.json", "[1]"), "datasets.json is damaged"),
        (
            lambda run: write(run, "inference/coco_instances_results.json", [{"score": 1}]),
            "coco_instances_results.json is damaged .entry 0: image_id is no number",
        ),
        (
            lambda run: write(
                run,
                "inference/coco_instances_results.json",
                [{"image_id": 1, "category_id": 1, "bbox": [0, 0, float("nan"), 1], "score": 1}],
            ),
            "entry 0: bbox is no number",
        ),
        (
            lambda run: write(
                run,
                "inference/coco_instances_results.json",
                [{"image_id": 1, "category_id": 99, "bbox": [0, 0, 1, 1], "score": 1}],
            ),
            "category id 99",
        ),
    ],
)
def test_a_run_that_cannot_be_reported_says_why_in_one_line(spoil, message, make):
    run = make()
    spoil(run)
    with pytest.raises(UserError, match=message) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": -1}, "--images -1"),
        ({"images": 101}, "--images 101"),
        ({"threshold": 1.5}, "--threshold 1.5"),
        ({"output": "page.txt"}, "page.txt: name a .html file"),
        ({"output": "absent/page.html"}, "absent/page.html cannot be written"),
    ],
)
def test_values_that_cannot_be_are_refused(options, message, make, tmp_path):
    if "output" in options:
        options = {"output": tmp_path / options["output"]}
    with pytest.raises(UserError, match=message):
        write_report(make(), **options)


def test_the_tool_says_nothing_of_scripts_that_a_font_lacks(make, tmp_path):
    names = ("\u5706\u5f62", "\u65b9\u5f62", "\u661f")
    runs = [make(name=name, classes=names) for name in ("\u8fd0\u884c", "run")]
    for words in ((runs[0],), runs):
        done = run_tool(REPO / "tools/report.py", *words, datasets=tmp_path, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_tool_writes_the_page_and_prints_errors_without_a_traceback(make, tmp_path):
    run = make()
    done = run_tool(REPO / "tools/report.py", run, datasets=tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {run / 'report.html'}\n"
    done = run_tool(REPO / "tools/report.py", "absent", datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: absent is no folder of a run: it has no config.yaml\n"
    words = (run, run, "--images", "3")
    done = run_tool(REPO / "tools/report.py", *words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and "--images and --threshold are for one run" in done.stderr


def test_what_is_no_fault_does_not_look_like_one(make):
    content = evaluation(("a", "b"))
    content["tasks"]["bbox"]["findings"] = [
        {"code": "no_detections", "message": "nothing was found", "remedy": "train"},
        {"code": "empty_size_bins", "message": "no large objects", "remedy": "nothing is wrong"},
    ]
    page = write_report(make(content)).read_text()
    assert "<li><strong>Nothing was found." in page
    assert '<li class="plain"><strong>No large objects.' in page
