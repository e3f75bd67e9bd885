import os

import pytest

from resnext_det.atomic import PREFIX, replacing


@pytest.mark.parametrize(
    "name", ["a.png", "x" * 255, "x" * 251 + ".png", "x." + "y" * 253, "\u5706" * 83 + ".json"]
)
def test_a_name_of_any_length_is_written_by_way_of_a_short_one(name, tmp_path):
    file = tmp_path / name
    with replacing(file) as temporary:
        assert temporary.parent == tmp_path and temporary.name.startswith(PREFIX)
        assert len(os.fsencode(temporary.name)) <= 30
        assert temporary.suffix == file.suffix or len(file.suffix) > 12
        temporary.write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert file.read_text() == "whole"
