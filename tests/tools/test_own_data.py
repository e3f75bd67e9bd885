"""The README's lines for a data set of one's own, run as they stand on a small VOC folder."""

import json
import shlex

import numpy as np
from PIL import Image

from tests.helpers import REPO, run_tool

XML = """<annotation><filename>{name}.jpg</filename>
<size><width>96</width><height>64</height><depth>3</depth></size>
<object><name>{kind}</name><difficult>0</difficult>
<bndbox><xmin>{left}</xmin><ymin>11</ymin><xmax>{right}</xmax><ymax>42</ymax></bndbox></object>
</annotation>"""
FEW = (
    "SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
)  # fmt: skip


def write_voc(root):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for index in range(6):
        left, kind = 10 + 5 * index, ("cat", "dog")[index % 2]
        pixels = np.full((64, 96, 3), 90, np.uint8)
        pixels[10:42, left - 1 : left + 31] = (200, 60, 60) if kind == "cat" else (60, 60, 200)
        Image.fromarray(pixels).save(root / f"JPEGImages/{index}.jpg")
        text = XML.format(name=index, kind=kind, left=left, right=left + 31)
        (root / f"Annotations/{index}.xml").write_text(text)
    (root / "ImageSets/Main/trainval.txt").write_text("0\n1\n2\n3\n")
    (root / "ImageSets/Main/test.txt").write_text("4\n5\n")


def readme_commands():
    section = (REPO / "README.md").read_text().split("## Your own data", 1)[1]
    block = section.split("```sh\n", 1)[1].split("```", 1)[0].replace("\\\n", " ")
    return [shlex.split(line) for line in block.splitlines()]


def test_the_readmes_lines_take_a_voc_folder_to_pictures(tmp_path):
    write_voc(tmp_path / "VOC2007")
    (tmp_path / "tools").symlink_to(REPO / "tools")
    (tmp_path / "configs").symlink_to(REPO / "configs")
    commands = readme_commands()
    assert [c[1].removeprefix("tools/") for c in commands] == [
        *("convert_dataset.py", "convert_dataset.py", "check_data.py"),
        *("train_net.py", "train_net.py", "plot_run.py", "visualize_data.py"),
    ]
    for number, (python, *words) in enumerate(commands):
        assert python == "python"
        few = FEW if number == 3 else ()
        done = run_tool(*words, *few, datasets=tmp_path / "datasets", cwd=tmp_path)
        assert done.returncode in ((0, 3) if number == 2 else (0,)), done.stderr
    first, again = (
        json.loads((tmp_path / f"output/{run}/results.json").read_text())
        for run in ("own", "own_again")
    )
    assert {"AP-cat", "AP-dog"} <= set(first["bbox"])
    assert first == again
    for picture in ("output/own/curves.png", "output/own/predictions.png", "data.jpg"):
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) > 50
