"""Engines that run a model file: ONNX Runtime, OpenVINO or PyTorch, each imported when needed."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError, one_line
from .card import KEY, Card
from .optional import import_package, openvino_core

Run = Callable[[np.ndarray], Sequence[np.ndarray]]

SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "torchscript": ".torchscript",
    "torch_export": ".pt2",
}


def open_model(file: Path) -> tuple[Card, Run]:
    """Load a model file of `tools/export_model.py`; no Python code in it is run.

    The engine takes as many threads as OMP_NUM_THREADS says, its own default where that is not set.

    Args:
        file: its suffix tells the format, see `SUFFIXES`.

    Returns:
        The card, and a function from an image (H, W, 3) RGB uint8 to the model's outputs, which
        threads may call at the same time.

    Raises:
        UserError: if the file is absent, damaged, of no known format, or its engine not installed.
    """
    if not file.is_file():
        reason = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"{file} {reason}: name a model file of tools/export_model.py")
    loaders = {".onnx": _onnx, ".xml": _openvino, ".torchscript": _torch, ".pt2": _torch}
    if file.suffix not in loaders:
        raise UserError(f"{file} is no model file: its name ends in none of {', '.join(loaders)}")
    try:
        return loaders[file.suffix](file)
    except UserError:
        raise
    except Exception as error:  # engines raise whatever they like on damaged files
        raise UserError(f"{file} cannot be loaded: {one_line(error)}") from error


def _threads() -> int:
    words = os.environ.get("OMP_NUM_THREADS", "")
    return int(words) if words.isdecimal() else 0


def _onnx(file: Path) -> tuple[Card, Run]:
    onnxruntime = import_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.log_severity_level = 4  # what it cannot go on after; errors are raised
    session = onnxruntime.InferenceSession(
        str(file), sess_options=options, providers=["CPUExecutionProvider"]
    )
    card = Card.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), str(file))
    return card, lambda image: session.run(None, {"image": image})


def _openvino(file: Path) -> tuple[Card, Run]:
    core = openvino_core()
    if not file.with_suffix(".bin").is_file():
        raise UserError(f"{file} has its weights in {file.with_suffix('.bin').name}: absent")
    with file.open("rb") as stream:
        if not stream.read(64).lstrip().startswith(b"<"):  # its readers would print pages
            raise UserError(f"{file} is no model of OpenVINO: it is no XML")
    model = core.read_model(str(file))
    text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
    card = Card.from_json(text, str(file))
    # where the CPU has it, OpenVINO would take bfloat16 of its own accord
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    if _threads():
        settings["INFERENCE_NUM_THREADS"] = _threads()
    compiled = core.compile_model(model, "CPU", settings)

    idle = deque()  # requests: each holds the results of one call, so threads must not share one

    def run(image: np.ndarray) -> list[np.ndarray]:
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        found = request.infer({0: image}, share_inputs=True, share_outputs=False)
        outputs = [found[port] for port in compiled.outputs]
        idle.append(request)
        return outputs

    return card, run


def _torch(file: Path) -> tuple[Card, Run]:
    try:
        import torch
        import torchvision  # noqa: F401  registers NMS and the pooling of regions
    except ImportError as error:
        raise UserError(
            f"{file} needs PyTorch: pip install torch torchvision, or export to another format"
        ) from error
    from .scripted import load_scripted
    from .untrusted import load_exported

    load = load_exported if file.suffix == ".pt2" else load_scripted
    text, module = load(file)

    def run(image: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [out.numpy() for out in module(torch.from_numpy(image))]

    return Card.from_json(text, str(file)), run
