#!/usr/bin/env python
"""Measure time and peak memory of tools/convert_weights.py, proof included.

python tools/benchmark_conversion.py

Each conversion runs in a process of its own, on a file with random weights in torchvision's
layout. Beside it stands what importing torch and Detectron2 alone takes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch
import torchvision

TOOL = Path(__file__).with_name("convert_weights.py")
FILES = {
    "resnext50_32x4d.pth": torchvision.models.resnext50_32x4d,
    "resnext50_32x4d.safetensors": torchvision.models.resnext50_32x4d,
    "resnext101_64x4d.pth": torchvision.models.resnext101_64x4d,
}


def measure(*command: object) -> tuple[float, float]:
    """Run a Python program; return its seconds and its peak memory in MB (1e6 bytes)."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: {' '.join(map(str, command))} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit / 1e6


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    measure("-c", "import resnext_det")  # fills the disk cache
    seconds, base = measure("-c", "import resnext_det")
    print(f"{'':28} {'file MB':>8} {'seconds':>8} {'peak MB':>8} {'3 x file + 500':>15}")
    print(f"{'imports alone':28} {'':>8} {seconds:8.1f} {base:8.0f}")
    with tempfile.TemporaryDirectory() as folder:
        for name, build in FILES.items():
            path = Path(folder) / name
            torch.manual_seed(0)
            state = build(weights=None).state_dict()
            if path.suffix == ".pth":
                torch.save(state, path)
            else:
                safetensors.torch.save_file(state, path)
            size = path.stat().st_size / 1e6
            seconds, peak = measure(TOOL, path, Path(folder) / "converted.pth")
            print(f"{name:28} {size:8.0f} {seconds:8.1f} {peak:8.0f} {3 * size + 500:15.0f}")


if __name__ == "__main__":
    main()
