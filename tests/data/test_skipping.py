import json

import pytest

from resnext_det.data.skipping import SkippedImages, SkippingDataset
from resnext_det.errors import UserError

RECORDS = [{"file_name": f"{i}.jpg"} for i in range(6)]


def mapper(*broken):
    def call(record):
        if record["file_name"] in broken:
            raise UserError(f"cannot read image {record['file_name']}: broken")
        return {"mapped": record["file_name"]}

    return call


def dataset(tmp_path, *broken, limit=2, finder=""):
    skipped = SkippedImages(tmp_path / "skipped_images.jsonl", limit, finder)
    return SkippingDataset(RECORDS, mapper(*broken), skipped)


def test_sound_data_leave_no_file(tmp_path):
    data = dataset(tmp_path)
    assert [data[i]["mapped"] for i in range(len(data))] == [r["file_name"] for r in RECORDS]
    assert not list(tmp_path.iterdir())


def test_a_broken_image_gives_way_to_the_next_and_is_said_once(tmp_path, caplog):
    data = dataset(tmp_path, "2.jpg", "5.jpg")
    with caplog.at_level("WARNING", "resnext_det"):
        found = [data[i]["mapped"] for i in (2, 5, 2)]
    assert found == ["3.jpg", "0.jpg", "3.jpg"]
    assert caplog.text.count("left out 2.jpg: cannot read image 2.jpg: broken") == 1
    lines = (tmp_path / "skipped_images.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == ["2.jpg", "5.jpg"]


@pytest.mark.parametrize(
    "finder, advice",
    [("", ""), ("python tools/check_data.py", "; python tools/check_data.py finds all")],
)
def test_one_too_many_stops_with_the_list(finder, advice, tmp_path):
    data = dataset(tmp_path, "1.jpg", "2.jpg", "3.jpg", finder=finder)
    with pytest.raises(UserError) as caught:
        data[1]
    message = str(caught.value)
    assert message.startswith(
        f"3 images cannot be used, more than DATALOADER.MAX_SKIPPED_IMAGES 2{advice}: "
        "cannot read image 1.jpg: broken; "
    )
    assert message.endswith("cannot read image 3.jpg: broken")
    assert "\n" not in message


def test_workers_of_one_run_share_the_count(tmp_path):
    first = dataset(tmp_path, "1.jpg", "2.jpg", limit=1)
    second = dataset(tmp_path, "4.jpg", limit=1)
    assert second[4]["mapped"] == "5.jpg"
    with pytest.raises(UserError, match="2 images cannot be used"):
        first[1]


def test_without_a_budget_the_first_broken_image_is_the_error(tmp_path):
    with pytest.raises(
        UserError, match=r"^cannot read image 1.jpg: broken \(DATALOADER.MAX_SKIPPED"
    ):
        dataset(tmp_path, "1.jpg", limit=0)[1]


def test_a_set_without_one_usable_image_is_an_error(tmp_path):
    names = [r["file_name"] for r in RECORDS]
    with pytest.raises(UserError, match=r"no image .* can be used, e.g. cannot read image 1.jpg"):
        dataset(tmp_path, *names, limit=10)[2]
