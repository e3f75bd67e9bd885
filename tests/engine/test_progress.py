"""What a run shows: a line in a log, a bar on a terminal, and its files."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnext_det.data import shapes
from tests.engine.jobs import QUICK, SMALL, Run, small_shapes
from tests.helpers import REPO

LINE = re.compile(
    r"iter: 20/21  eta: 0:00:0\d  total_loss: \d\S*  loss_box_reg: \S+  loss_cls: \S+  "
    r"loss_rpn_cls: \S+  loss_rpn_loc: \S+  lr: \S+  time: \S+ s  data: \S+ s  images/s: \S+  "
    r"memory: \d+ MB"
)


def test_a_line_has_eta_losses_times_throughput_and_memory(tmp_path):
    output = tmp_path / "output"
    run = Run(tmp_path, output, "SOLVER.MAX_ITER", "21", "SOLVER.CHECKPOINT_PERIOD", "100")
    assert run.wait() == 0, run.console
    assert LINE.search(run.console), run.console
    assert LINE.search((output / "log.txt").read_text())
    row = json.loads((output / "metrics.json").read_text().splitlines()[0])
    assert row["iteration"] == 19
    assert {"total_loss", "lr", "data_time", "images_per_second", "memory_mb"} <= row.keys()
    events = EventAccumulator(str(output)).Reload()
    assert {"total_loss", "images_per_second", "bbox/AP"} <= set(events.Tags()["scalars"])


def test_a_terminal_sees_a_bar_and_no_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLIT_SIZES", dict(shapes.SPLIT_SIZES))
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    small_shapes(tmp_path / "datasets")
    shapes.shapes_folder()
    words = ("--config-file", QUICK, *SMALL, "SOLVER.MAX_ITER", "21", "OUTPUT_DIR", "output")
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(tmp_path / "datasets"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    job = subprocess.Popen(
        [sys.executable, str(REPO / "tools/train_net.py"), *words],
        stdout=theirs,
        stderr=theirs,
        env=environment,
        cwd=tmp_path,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the job has closed its end
            break
    os.close(ours)
    text = shown.decode()
    assert job.wait() == 0, text
    assert re.search(r"21/21 .*it/s, total_loss=", text), text
    assert "iter: 20/21" not in text
    assert "iter: 20/21" in (tmp_path / "output/log.txt").read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_runs_with_the_same_seed_are_the_same_with_any_number_of_workers(tmp_path, workers):
    weights = []
    for number in ("0", workers):
        run = Run(tmp_path, tmp_path / number, "SOLVER.MAX_ITER", "3",
                  "DATALOADER.NUM_WORKERS", number)  # fmt: skip
        assert run.wait() == 0, run.console
        weights.append((tmp_path / number / "results.json").read_text())
    assert weights[0] == weights[1]
