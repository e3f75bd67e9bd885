"""Package resnext_det. Configs and the Detectron2 pin travel inside the wheel as package data."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def data_packages(folder: str) -> dict[str, str]:
    """Map `resnext_det.<folder>` and its subfolders to the folders at the top of the checkout."""
    folders = [
        folder,
        *(str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*") if p.is_dir()),
    ]
    folders = [f for f in folders if not f.endswith("__pycache__")]
    return {"resnext_det." + f.replace("/", "."): f for f in folders}


DATA = {**data_packages("configs"), **data_packages("requirements")}

setup(
    name="resnext_det",
    version="0.1.0",
    description="ResNeXt (Xie et al., CVPR 2017) as an object-detection plugin for Detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["resnext_det", "resnext_det.*"]), *DATA],
    package_dir=DATA,
    package_data={
        "": ["*.yaml", "*.txt"],
        "resnext_det.inference": ["web_page.*"],
        "resnext_det.report": ["templates/*"],
    },
    # Detectron2 itself is absent: it has no release on PyPI under its own name.
    # `python -m resnext_det.doctor` prints the command that installs it.
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "numpy",
        "pillow",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7",
        "pycocotools",
        "yacs",
        "omegaconf<2.4",
        "hotcoco>=1.3",
        "hydra-core",
        "jinja2",
        "tabulate",
        "termcolor",
        "cloudpickle",
        "tqdm",
        "matplotlib",
        "tensorboard",
        "torchfile",
        "packaging",
        "portalocker",
        "safetensors>=0.4",
        "setuptools<81",  # Detectron2 imports pkg_resources
    ],
    extras_require={
        "onnx": ["onnx", "onnxruntime", "onnxscript"],  # export to ONNX, and running it
        "openvino": ["openvino>=2025.0", "nncf>=2.14"],  # the fastest on CPUs; int8
        "slurm": ["submitit>=1.5"],  # for tools/submit_slurm.py
        "video": ["opencv-python-headless"],  # for tools/demo.py on videos
        "web": ["starlette", "uvicorn"],  # for tools/webdemo.py
    },
)
