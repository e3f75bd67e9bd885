"""`python -m resnext_det.doctor`: what is installed, and the command for whatever is missing.

Uses the standard library alone until it knows that a package is there.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import sysconfig
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

# import name -> pip requirement; the bounds are Detectron2's (see setup.py)
_REQUIREMENTS = {
    "torch": "torch>=2.6",
    "torchvision": "torchvision",
    "fvcore": "fvcore>=0.1.5,<0.1.6",
    "iopath": "iopath>=0.1.7",
    "pycocotools": "pycocotools",
    "yacs": "yacs",
    "omegaconf": "omegaconf<2.4",
    "hydra": "hydra-core",
    "numpy": "numpy",
    "PIL": "pillow",
    "matplotlib": "matplotlib",
    "portalocker": "portalocker",
    "safetensors": "safetensors>=0.4",
    "torchfile": "torchfile",
    "tensorboard": "tensorboard",
    "cloudpickle": "cloudpickle",
    "tabulate": "tabulate",
    "termcolor": "termcolor",
    "tqdm": "tqdm",
    "pkg_resources": "setuptools<81",
}


def detectron2_command() -> str:
    """The shell command that installs the pinned Detectron2 wheel for the running Python."""
    packaged = _PACKAGE / "requirements" / "detectron2.txt"
    pin = packaged if packaged.is_file() else _PACKAGE.parent / "requirements" / "detectron2.txt"
    return (
        f"{sys.executable} -m pip install --upgrade --no-deps --require-hashes "
        f"--only-binary=:all: --python-version 3.10 "
        f"--target {sysconfig.get_path('purelib')} -r {pin}"
    )


def _device_lines() -> list[tuple[str, str]]:
    import torch

    lines = []
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        lines.append(("device", f"cuda, {len(names)} GPUs: {', '.join(names)}"))
    else:
        lines.append(("device", "cpu (no GPU is visible to torch)"))
    omp = os.environ.get("OMP_NUM_THREADS", "not set")
    lines.append(("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"))
    lines.append(("OMP_NUM_THREADS", omp))
    return lines


def _compiled_part() -> str:
    try:
        importlib.import_module("detectron2._C")
    except ImportError:
        return (
            "absent: rotated boxes, deformable convolution and the C++ COCO evaluator are missing; "
            "nothing else is"
        )
    return "present"


def main() -> int:
    """Print the report.

    Returns:
        0 if everything needed is there, else 2.
    """
    rows = [("Python", f"{platform.python_version()} ({sys.executable})")]
    commands = []
    for name, requirement in _REQUIREMENTS.items():
        if importlib.util.find_spec(name) is None:
            rows.append((name, "MISSING"))
            commands.append(f"{sys.executable} -m pip install '{requirement}'")
        elif name in ("torch", "torchvision"):
            rows.append((name, importlib.metadata.version(name)))
    if importlib.util.find_spec("detectron2") is None:
        rows.append(("Detectron2", "MISSING"))
        commands.append(detectron2_command())
    elif not commands:
        rows.append(("Detectron2", importlib.import_module("detectron2").__version__))
        rows.append(("detectron2._C", _compiled_part()))
    if importlib.util.find_spec("torch") is not None:
        rows.extend(_device_lines())
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    for command in commands:
        print(f"\nmissing; install with:\n  {command}")
    if not commands:
        print("\nall that resnext_det needs is installed")
    return 2 if commands else 0


if __name__ == "__main__":
    sys.exit(main())
