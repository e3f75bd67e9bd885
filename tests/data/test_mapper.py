import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

import resnext_det
from resnext_det.data import NamingDatasetMapper
from resnext_det.errors import UserError


@pytest.fixture
def mapper():
    return NamingDatasetMapper(resnext_det.get_cfg("faster_rcnn_X50_32x4d"), False)


def test_a_good_image_is_read_in_the_configs_channel_order(mapper, tmp_path):
    file = tmp_path / "red.png"
    Image.new("RGB", (40, 20), (255, 0, 0)).save(file)
    image = mapper({"file_name": str(file), "height": 20, "width": 40})["image"]
    assert image[0].min() == 255  # INPUT.FORMAT is RGB
    assert image[1:].max() == 0


@pytest.mark.parametrize("damage", ["absent", "empty", "truncated", "text", "other size"])
def test_an_unreadable_image_is_named(mapper, tmp_path, damage):
    file = tmp_path / "image.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(file)
    height = 64
    if damage == "absent":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:500])
    elif damage == "text":
        file.write_text("no image")
    else:
        height = 63
    with pytest.raises(UserError, match=f"cannot read image {file}") as caught:
        mapper({"file_name": str(file), "height": height, "width": 64})
    assert "\n" not in str(caught.value)


def test_datasets_are_registered_without_being_read(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    for name in ("coco_trainval35k", "coco_minival", "shapes_train", "shapes_minival"):
        assert name in DatasetCatalog
    assert list(tmp_path.iterdir()) == []
