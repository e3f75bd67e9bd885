"""`tools/demo.py`: what it writes for images, folders, videos and standard input, and refuses."""

import builtins
import importlib.util
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from resnext_det import Predictor
from resnext_det.data.shapes import draw_image
from resnext_det.errors import UserError
from resnext_det.inference.collection import Collection
from resnext_det.inference.demo import run_demo
from resnext_det.inference.runner import Options
from resnext_det.inference.sources import find_sources
from tests.helpers import REPO, run_tool
from tests.inference.models import small_config, write_run

cv2 = pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), small_config())


@pytest.fixture
def folder(tmp_path):
    """Three images of two sizes."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("b.png", "a.jpg", "c.bmp")):
        image = Image.fromarray(draw_image((number,))[0])
        image.crop((0, 0, 128, 128 - 32 * (number == 1))).save(tmp_path / "in" / name)
    return tmp_path / "in"


@pytest.fixture
def demo(run, tmp_path, monkeypatch):
    """Runs the demo in this process, into tmp_path/out; its result has what it said as `lines`."""
    monkeypatch.chdir(tmp_path)
    predictors = {}

    def make(config, weights, *, overrides, batch_size, optimize):
        key = (config, weights, tuple(overrides))
        predictor = predictors.setdefault(key, Predictor(config, weights, overrides=overrides))
        predictor.batch_size = batch_size
        return predictor

    monkeypatch.setattr("resnext_det.inference.demo.Predictor", make)

    def start(*inputs, output=tmp_path / "out", **options):
        lines = []
        options.setdefault("threshold", 0.0)
        summary = run_demo(
            str(run[0]), str(run[1]), list(map(str, inputs)), output, Options(**options),
            say=lines.append,
        )  # fmt: skip
        return SimpleNamespace(**vars(summary), lines=lines)

    return start


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_becomes_a_picture_an_image_and_all_files(demo, folder, run, tmp_path):
    (folder / "deeper").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "deeper/d.png")
    summary = demo(folder, batch=2, json=True, csv=True, coco=True)
    assert names(tmp_path / "out") == [
        "a.jpg", "b.png", "c.png", "coco_instances_results.json", "images.json",
        "predictions.csv", "predictions.json",
    ]  # fmt: skip
    assert (summary.images, summary.failed) == (3, [])
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [i["file"] for i in content["images"]] == [
        str(folder / name) for name in ("a.jpg", "b.png", "c.bmp")
    ]
    predictor = Predictor(*run)
    for image in content["images"]:
        expected = predictor.predict_dicts(image["file"])
        assert [d["class"] for d in image["detections"]] == expected["names"]
        boxes = [d["box"] for d in image["detections"]]
        np.testing.assert_allclose(boxes, expected["boxes"], atol=0.02)
    assert Image.open(tmp_path / "out/a.jpg").size == (3 * 128, 3 * 96)
    assert len(summary.lines) == 3
    assert summary.detections == sum(len(i["detections"]) for i in content["images"])


def test_the_threshold_bounds_every_output(demo, folder, run, tmp_path):
    scores = np.sort(Predictor(*run).predict_dicts(folder / "a.jpg")["scores"])
    threshold = float(scores[len(scores) // 2])
    summary = demo(folder / "a.jpg", threshold=threshold, json=True, coco=True)
    assert 0 < summary.detections < len(scores)
    results = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert len(results) == summary.detections
    assert min(r["score"] for r in results) >= threshold


def test_patterns_and_repeated_inputs(demo, folder, tmp_path):
    (folder / "notes.txt").write_text("x")
    summary = demo(str(folder / "*"), folder / "a.jpg", "in/b.png")
    assert summary.images == 3
    odd = folder / "o[1].png"
    (folder / "b.png").rename(odd)
    assert [s.path for s in find_sources([str(odd)])] == [odd]


def test_what_is_no_image_in_a_folder_is_counted_once(demo, folder, caplog):
    for number in range(3):
        (folder / f"{number}.txt").write_text("x")
    assert demo(folder).images == 3
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        f"folder {folder}: 3 of 6 files are no images, skipped"
    ]


def test_an_unreadable_image_among_others_is_named_and_left_out(demo, folder, caplog):
    (folder / "broken.jpg").write_bytes(b"x")
    Image.new("RGB", (3000, 1)).save(folder / "narrow.png")
    summary = demo(folder, batch=5)
    assert summary.images == 3
    assert {p.name for p in summary.failed} == {"broken.jpg", "narrow.png"}
    assert "broken.jpg: it is none of" in caplog.text
    assert f"cannot use image {folder / 'narrow.png'}: an image of 3000 x 1" in caplog.text
    assert len(summary.lines) == 5


def test_the_only_input_or_all_that_cannot_be_read_are_an_error(demo, folder):
    for name in ("x.jpg", "y.jpg"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"cannot read image .*x.jpg"):
        demo(folder / "x.jpg")
    with pytest.raises(UserError, match="all 2 inputs were left out"):
        demo(folder / "x.jpg", folder / "y.jpg")


def test_equal_stems_get_names_of_their_own_inside_the_folder(demo, folder, tmp_path):
    (folder / "sub").mkdir()
    image = Image.open(folder / "b.png")
    for name in ("sub/b.png", "sub/B.jpg", "sub/b_2.png", "..png", "predictions.png"):
        image.save(folder / name, "JPEG" if name.endswith("jpg") else "PNG")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    demo(folder, folder / "sub", "in/sub/../b.png", json=True)
    assert names(tmp_path / "out") == [
        "..png", "B_2.jpg", "a.jpg", "b.png", "b_2_2.png", "b_3.png", "c.png",
        "predictions.json", "predictions_2.png",
    ]  # fmt: skip
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def test_names_that_are_no_utf8_are_written_readably(demo, folder, tmp_path):
    try:
        os.rename(folder / "a.jpg", os.fsencode(folder) + b"/caf\xe9.jpg")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    summary = demo(folder, csv=True, json=True)
    assert summary.images == 3
    assert any("caf\\udce9.jpg" in line for line in summary.lines)
    assert "caf\\udce9.jpg" in (tmp_path / "out/predictions.csv").read_text(encoding="utf-8")


def test_inputs_are_never_replaced(demo, folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    for output in (folder, tmp_path / "in/../in", link):
        with pytest.raises(UserError, match="is the folder of the input"):
            demo(folder / "b.png", output=output)
    with pytest.raises(UserError, match="is the folder of the input"):
        demo(link / "b.png", output=folder)


def test_the_limit_counts_inputs(demo, folder, tmp_path):
    assert demo(folder, limit=2).images == 2
    assert names(tmp_path / "out") == ["a.jpg", "b.png"]


def test_an_image_from_standard_input(demo, folder, tmp_path, monkeypatch):
    def give(content):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    give((folder / "b.png").read_bytes())
    demo("-", json=True)
    (image,) = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    demo(folder / "b.png", json=True)
    (same,) = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert image == {**same, "file": "-"}
    assert names(tmp_path / "out") == ["b.png", "predictions.json", "stdin.png"]
    give(b"")
    with pytest.raises(UserError, match="standard input is empty"):
        demo("-")
    give(b"x")
    with pytest.raises(UserError, match="cannot read image from standard input"):
        demo("-")


def write_video(file, frames, fps=12.5, codec="mp4v"):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*codec), fps, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()
    return file


def read_video(file):
    capture, frames = cv2.VideoCapture(str(file)), []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame)
    return frames, capture.get(cv2.CAP_PROP_FPS)


@pytest.fixture
def frames():
    return [np.ascontiguousarray(draw_image((i,))[0][:, :, ::-1]) for i in range(7)]


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mp4v"), ("avi", "MJPG")])
def test_a_video_keeps_its_size_rate_and_number_of_frames(
    suffix, codec, demo, frames, run, tmp_path
):
    file = write_video(tmp_path / f"film.{suffix}", frames, codec=codec)
    summary = demo(file, batch=3)
    drawn, fps = read_video(tmp_path / "out/film.mp4")
    assert (len(drawn), drawn[0].shape, fps) == (7, frames[0].shape, 12.5)
    content = json.loads((tmp_path / "out/film.json").read_text())
    assert (content["fps"], content["width"], content["height"]) == (12.5, 128, 128)
    assert [f["frame"] for f in content["frames"]] == list(range(7))
    predictor = Predictor(*run)
    originals, _ = read_video(file)
    for original, frame, picture in zip(originals, content["frames"], drawn, strict=True):
        expected = predictor.predict_dicts(original)
        boxes = [d["box"] for d in frame["detections"]]
        np.testing.assert_allclose(boxes, expected["boxes"], atol=0.02)
        assert np.abs(picture.astype(int) - original).mean() > 5  # something is drawn
    assert summary.videos == 1 and names(tmp_path / "out") == ["film.json", "film.mp4"]


def test_videos_and_images_go_together_and_a_limit_bounds_frames(demo, frames, folder, tmp_path):
    write_video(tmp_path / "predictions.mp4", frames)
    summary = demo(folder / "b.png", tmp_path / "predictions.mp4", limit=4, json=True)
    assert (summary.images, summary.videos) == (1, 1)
    assert len(read_video(tmp_path / "out/predictions_2.mp4")[0]) == 4
    assert summary.lines[1].endswith("in 4 frames")
    with pytest.raises(UserError, match="--coco is for images"):
        demo(tmp_path / "predictions.mp4", coco=True)


def test_a_video_that_is_cut_off_says_how_much_is_there(demo, frames, tmp_path, caplog):
    whole = write_video(tmp_path / "film.avi", frames, codec="MJPG").read_bytes()
    (tmp_path / "film.avi").write_bytes(whole[: len(whole) // 2])
    demo(tmp_path / "film.avi")
    count = len(read_video(tmp_path / "out/film.mp4")[0])
    assert 0 < count < 7
    assert f"film.avi: {count} of 7 frames can be read" in caplog.text


def test_a_damaged_video_is_named_and_leaves_nothing(demo, frames, folder, tmp_path, caplog):
    (tmp_path / "film.mp4").write_bytes(b"x" * 999)
    with pytest.raises(UserError, match=r"cannot read video .*film.mp4: it is damaged"):
        demo(tmp_path / "film.mp4")
    assert names(tmp_path / "out") == []
    assert demo(tmp_path / "film.mp4", folder).failed == [tmp_path / "film.mp4"]
    assert "cannot read video" in caplog.text


def test_a_video_that_no_encoder_takes_is_left_out(demo, frames, folder, tmp_path, caplog):
    thin = [np.ascontiguousarray(frame[:, :1]) for frame in frames]
    write_video(tmp_path / "thin.avi", thin, codec="MJPG")
    summary = demo(tmp_path / "thin.avi", folder, json=True)
    assert (summary.images, summary.failed) == (3, [tmp_path / "thin.avi"])
    assert "thin.avi: 1 x 128 pixels are too few" in caplog.text
    assert "predictions.json" in names(tmp_path / "out")


def test_what_cannot_be_written_is_left_out_and_the_others_are_kept(
    demo, frames, folder, tmp_path, caplog
):
    write_video(tmp_path / "film.mp4", frames)
    for name in ("a.jpg", "film.mp4"):  # a folder is in the way
        (tmp_path / "out" / name / "full").mkdir(parents=True)
    summary = demo(folder, tmp_path / "film.mp4", json=True, csv=True)
    assert (summary.images, summary.videos) == (2, 0)
    assert {p.name for p in summary.failed} == {"a.jpg", "film.mp4"}
    assert "a.jpg cannot be written" in caplog.text and "film.mp4 cannot be" in caplog.text
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [Path(i["file"]).name for i in content["images"]] == ["b.png", "c.bmp"]


def test_names_as_long_as_the_file_system_takes_are_written(demo, folder, tmp_path):
    long = folder / ("x" * 251 + ".png")
    (folder / "b.png").rename(long)
    assert demo(folder).failed == []
    assert long.name in names(tmp_path / "out")


def test_ctrl_c_writes_what_was_found_so_far(demo, folder, tmp_path, monkeypatch):
    collected = Collection.add

    def interrupt(collection, file, instances):
        if collection.images:
            raise KeyboardInterrupt
        collected(collection, file, instances)

    monkeypatch.setattr(Collection, "add", interrupt)
    summary = demo(folder, json=True)
    assert summary.stopped and summary.images == 1
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [Path(i["file"]).name for i in content["images"]] == ["a.jpg"]


def test_without_opencv_the_extra_is_named(demo, frames, tmp_path, monkeypatch):
    write_video(tmp_path / "film.mp4", frames)
    original = builtins.__import__

    def without_cv2(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_cv2)
    with pytest.raises(UserError, match=r"pip install 'resnext_det\[video\]'"):
        demo(tmp_path / "film.mp4")


def test_a_video_that_could_not_be_written_is_an_error(demo, frames, tmp_path, monkeypatch):
    write_video(tmp_path / "film.mp4", frames)

    class Full:  # as on a full disk, where OpenCV says nothing; its types must not be derived from
        def __init__(self, *arguments, real=cv2.VideoWriter):
            self._writer = real(*arguments)
            self.isOpened, self.release = self._writer.isOpened, self._writer.release

        def write(self, frame):
            pass

    monkeypatch.setattr(cv2, "VideoWriter", Full)
    with pytest.raises(UserError, match=r"film.mp4 cannot be written"):
        demo(tmp_path / "film.mp4")
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 2}, "--threshold 2: a score lies from 0 to 1"),
        ({"threshold": float("nan")}, "--threshold nan"),
        ({"batch": 0}, "--batch 0: at least 1"),
        ({"limit": 0}, "--limit 0: at least 1"),
    ],
)
def test_a_value_that_is_out_of_range_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Options(**options)


def test_a_missing_input_is_refused_before_the_model_is_built(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    output = tmp_path / "out"
    for inputs, where, message in (
        (["absent.png"], output, "input 'absent.png': there is no such file or folder"),
        ([str(tmp_path / "empty")], output, "empty holds no image"),
        ([str(tmp_path / "*.png")], output, "matches no image"),
        ([str(folder), "MODEL.DEVICE", "cpu"], output, "config overrides go last"),
        (["x" * 5000], output, "cannot be read: File name too long"),
        ([str(folder)], tmp_path / "file", "cannot be made: it is a file"),
        ([str(folder)], tmp_path / "file/deeper", "cannot be made: Not a directory"),
    ):
        with pytest.raises(UserError, match=message.replace("*", r"\*")):
            run_demo("no config", None, inputs, where, Options())


def test_nothing_found_suggests_a_lower_threshold(demo, folder, caplog):
    assert demo(folder, threshold=1.0).detections == 0
    assert "nothing has a score of 1 or more: try a lower --threshold" in caplog.text


def test_the_tool_prints_a_line_an_image_and_ends_with_1_for_unreadable_ones(run, folder, tmp_path):
    words = [REPO / "tools/demo.py", "--config-file", run[0], "--weights", run[1], "--input"]
    words += [folder, "--output", tmp_path / "out", "--threshold", 0, "--json"]
    done = run_tool(*words, "INPUT.MIN_SIZE_TEST", 64, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *lines, summary, wrote = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(folder / name) for name in ("a.jpg", "b.png", "c.bmp")
    ]
    assert summary.startswith("3 images, ") and wrote == f"wrote {tmp_path}/out/predictions.json"
    (folder / "d.png").write_bytes(b"x")
    done = run_tool(*words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: inputs that were left out: 1")
    assert "3 images" in done.stdout and "Traceback" not in done.stderr


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("demo_tool", REPO / "tools/demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return module


def test_the_commands_of_the_page_parse(tool, monkeypatch):
    page = (REPO / "docs/inference.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^python (tools/demo\.py .*?)(?: < .*)?$", page, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        args = tool.parse_arguments()
        assert str(args.output) == "found"
        assert args.opts == (["MODEL.DEVICE", "cpu"] if "MODEL" in command else [])


def test_the_tools_errors_are_one_line(tool, run, folder, tmp_path, monkeypatch):
    words = ["demo.py", "--config-file", run[0], "--input", folder, "--output", tmp_path / "out"]
    for more, message in (
        ((), "no weights are given"),
        (("--weights", folder / "a.jpg"), "is no weight file"),
        (("--threshold", "7"), "--threshold 7"),
        (("MODEL.DEVICEE", "cpu"), "unknown config key 'MODEL.DEVICEE'"),
    ):
        monkeypatch.setattr(sys, "argv", list(map(str, (*words, *more))))
        with pytest.raises(SystemExit) as caught:
            tool.main()
        assert caught.value.code.startswith("error: ") and message in caught.value.code
        assert "\n" not in caught.value.code


def test_the_tool_says_in_one_line_that_it_was_stopped(
    tool, run, folder, tmp_path, monkeypatch, capsys
):
    def interrupt(collection, file, instances):
        raise KeyboardInterrupt

    monkeypatch.setattr(Collection, "add", interrupt)
    words = ("--config-file", run[0], "--weights", run[1], "--input", folder, "--json")
    words = ("demo.py", *words, "--output", tmp_path / "out")
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    with pytest.raises(SystemExit) as caught:
        tool.main()
    assert caught.value.code == 130
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("stopped: 0 images") and lines[1].startswith("wrote ")
