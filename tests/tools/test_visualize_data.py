"""`tools/visualize_data.py` and its pictures, pixel by pixel, on a data set made for it."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

import resnext_det
from resnext_det.data.drawing import MASK_OPACITY, class_colour
from resnext_det.data.ground_truth import draw_data
from resnext_det.data.sheets import TITLE_PIXELS
from resnext_det.errors import UserError
from tests.helpers import REPO, run_tool

TOOL = REPO / "tools/visualize_data.py"
BACKGROUND = (200, 100, 50)  # RGB
SCALE = 4  # of the pictures: a multiple of 120 x 100 pixels that is at most 480
BOX = (20, 30, 60, 70)
CROWD = (70, 40, 110, 90)


def colour(class_id):
    return np.array(class_colour(class_id), float)


@pytest.fixture
def cfg(tmp_path):
    """Five images of one colour, each with a square of class 1 and a crowd of class 0."""
    records = []
    for i in range(5):
        file = tmp_path / f"image{i}.png"
        Image.new("RGB", (120, 100), BACKGROUND).save(file)
        x0, y0, x1, y1 = BOX
        square = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 0}
        square["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        crowd = {**square, "bbox": CROWD, "category_id": 0, "iscrowd": 1}
        crowd["segmentation"] = {"size": [100, 120], "counts": [0, 12000]}
        record = {"file_name": str(file), "image_id": i, "height": 100, "width": 120}
        records.append({**record, "annotations": [square, crowd]})
    DatasetCatalog.register("drawn", lambda: records)
    MetadataCatalog.get("drawn").set(thing_classes=["a", "$b"])
    cfg = resnext_det.get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("drawn",)
    cfg.MODEL.MASK_ON = True
    yield cfg
    DatasetCatalog.remove("drawn")
    MetadataCatalog.remove("drawn")


def pixels(file):
    """The image of a picture, without its title."""
    picture = np.asarray(Image.open(file).convert("RGB")).astype(float)
    assert picture.shape == (100 * SCALE + TITLE_PIXELS, 120 * SCALE, 3)
    return picture[TITLE_PIXELS:]


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("train", [True, False])
def test_boxes_and_masks_stand_where_the_objects_are(
    image_format, mask_format, train, cfg, tmp_path
):
    cfg.INPUT.FORMAT, cfg.INPUT.MASK_FORMAT = image_format, mask_format
    (file,) = draw_data(cfg, train=train, num=1, augment=False, folder=tmp_path / "out")
    image = pixels(file)
    np.testing.assert_allclose(image[4, 4], BACKGROUND, atol=1)
    x0, y0, x1, y1 = (SCALE * v for v in BOX)
    middle = (y0 + y1) // 2, (x0 + x1) // 2
    blended = MASK_OPACITY * colour(1) + (1 - MASK_OPACITY) * np.array(BACKGROUND)
    np.testing.assert_allclose(image[middle], blended, atol=2)
    for row, column in ((middle[0], x0), (middle[0], x1 - 1), (y1 - 1, middle[1])):
        np.testing.assert_allclose(image[row, column], colour(1), atol=2)
    for row, column in ((middle[0], x0 - 6), (middle[0], x1 + 6), (y1 + 6, middle[1])):
        np.testing.assert_allclose(image[row, column], BACKGROUND, atol=1)


def test_a_crowd_is_dashed_and_has_no_mask(cfg, tmp_path):
    (file,) = draw_data(cfg, num=1, augment=False, folder=tmp_path / "out")
    image = pixels(file)
    x0, y0, x1, y1 = (SCALE * v for v in CROWD)
    np.testing.assert_allclose(image[(y0 + y1) // 2, (x0 + x1) // 2], BACKGROUND, atol=1)
    edge = np.abs(image[y0 + 5 : y1 - 5, x1 - 1] - colour(0)).max(axis=1) < 3
    assert 0.3 < edge.mean() < 0.9
    x1, y0, y1 = (SCALE * BOX[i] for i in (2, 1, 3))
    solid = np.abs(image[y0 + 5 : y1 - 5, x1 - 1] - colour(1)).max(axis=1) < 3
    assert solid.all()


def test_boxes_follow_the_flip(cfg, tmp_path):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.MODEL.MASK_ON = (100,), False
    files = draw_data(cfg, num=5, folder=tmp_path / "out")
    row = SCALE * (BOX[1] + BOX[3]) // 2
    sides = set()
    for file in files:
        image = pixels(file)
        at = {
            name: np.abs(image[row, SCALE * x] - colour(1)).max() < 3
            for name, x in (("as it is", BOX[0]), ("flipped", 120 - BOX[2]))
        }
        assert sum(at.values()) == 1
        sides.add(max(at, key=at.get))
    assert sides == {"as it is", "flipped"}


def test_the_same_seed_draws_the_same_and_another_does_not(cfg, tmp_path):
    cfg.INPUT.MIN_SIZE_TRAIN = (100,)

    def draw(seed, num, name):
        cfg.SEED = seed
        files = draw_data(cfg, num=num, folder=tmp_path / name)
        return {file.name: file.read_bytes() for file in files}

    five = draw(-1, 5, "five")
    assert len(five) == 5
    assert draw(0, 9, "again") == five
    assert draw(0, 2, "two").items() <= five.items()
    assert draw(1, 5, "other") != five


def test_a_sheet_is_one_picture(cfg, tmp_path):
    for sheet in (tmp_path / "a.jpg", tmp_path / "a.png"):
        assert draw_data(cfg, num=5, sheet=sheet) == [sheet]
        picture = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
        assert (np.abs(picture - BACKGROUND).max(axis=2) < 12).mean() > 0.2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num": 0}, "--num 0: at least 1 image"),
        ({"sheet": "a.gif"}, r"a\.gif: a sheet is one of \.jpg, \.jpeg, \.png"),
        ({"sheet": "a.jpg", "num": 101}, "--num 101: a sheet holds up to 100"),
        ({"folder": "image0.png"}, r"folder .*image0\.png cannot be made: File exists"),
        ({"sheet": "none/a.jpg"}, r"none/a\.jpg cannot be written: No such file"),
        ({"folder": "out", "sheet": "a.jpg"}, "either a folder for pictures or one sheet"),
    ],
)
def test_a_mistake_is_named(values, message, cfg, tmp_path):
    values = {k: v if k == "num" else tmp_path / v for k, v in values.items()}
    if "sheet" not in values and "folder" not in values:
        values["folder"] = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        draw_data(cfg, **values)


def test_the_tool_draws_a_coco_set_of_ones_own(tmp_path):
    for folder in ("coco/annotations", "coco/val2017"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (120, 100), BACKGROUND).save(tmp_path / "coco/val2017/a.jpg")
    image = {"id": 1, "file_name": "a.jpg", "width": 120, "height": 100}
    names = MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id
    categories = [
        {"id": i, "name": MetadataCatalog.get("coco_2017_val").thing_classes[k]}
        for i, k in names.items()
    ]
    content = {"images": [image], "annotations": [], "categories": categories}
    file = tmp_path / "coco/annotations/instances_val2017.json"
    file.write_text(json.dumps(content))
    words = (TOOL, "--config-file", "mask_rcnn_X50_32x4d_FPN", "--split", "test")
    words += ("DATASETS.TEST", "('coco_2017_val',)", "OUTPUT_DIR", tmp_path / "run")
    done = run_tool(*words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote 1 pictures into {tmp_path / 'run/data_test'}\n"
    (tmp_path / "coco/val2017/a.jpg").unlink()
    done = run_tool(*words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot read image") and done.stderr.count("\n") == 1
    done = run_tool(*words[:-4], "DATASETS.TEST", "('nope',)", datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: dataset nope is not registered")
