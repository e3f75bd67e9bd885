"""What is timed side by side: functions of images (N, 3, H, W), float32, 0..255.

Those of scope "whole" give a list of detections, those of "backbone" a sequence of feature maps.
The images of "backbone" are normalised before.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..compiled import modules_of, optimize
from ..engines import OpenVINORun, choose_engine, compile_part, to_array
from ..parts import Part
from ..quantization import quantize, quantize_part
from ..quantized import Quantized
from . import exported, torchvision_rcnn
from .networks import Networks, bottom_up, bottom_up_name
from .settings import BASELINE, TITLES

Function = Callable[[Tensor], Sequence]

# In names of sides, and in those of `optimize`
_ENGINES = {"compile": "torch.compile", "eager": "eager", "openvino": "openvino"}


class Sides:
    """Makes the functions of one scope from the networks, ready to be timed."""

    def __init__(self, networks: Networks, scope: str, quantized: Path | None = None) -> None:
        """Nothing is built yet.

        Args:
            networks: what is compared.
            scope: one of `SCOPES`.
            quantized: folder of an int8 model of `networks.ours` that is there already.
        """
        self.networks = networks
        self.scope = scope
        self.quantized = None if quantized is None else Quantized.load(quantized)

    def make(self, name: str, streams: int = 1) -> Function:
        """Make a side's function.

        Args:
            name: one of `TITLES`.
            streams: see `optimize`.

        Raises:
            UserError: if what it needs is not installed, or it has no such network.
        """
        if self.scope == "whole":
            return self._detector(name, streams)
        return self._backbone(name, streams)

    def _detector(self, name: str, streams: int) -> Function:
        networks = self.networks
        if name == "torchvision":
            model = torchvision_rcnn.build_detector(networks.cfg, networks.detectron2)
            return without_gradients(lambda images: model(list(images)))
        if name == BASELINE:
            model = networks.detectron2
        elif name == "ours":
            model = networks.ours
        elif name == "openvino-int8":
            if self.quantized is None:
                self.quantized = quantize(networks.ours, networks.calibration)
            model = self.quantized.detector(networks.ours, streams=streams)
        else:
            engine, precision = name.split("-")
            engine = choose_engine(_ENGINES[engine])
            model = optimize(networks.ours, precision, engine=engine, streams=streams)

        def detect(images: Tensor) -> list:
            return [r["instances"] for r in model([{"image": image} for image in images])]

        return without_gradients(detect)

    def _backbone(self, name: str, streams: int) -> Function:
        networks = self.networks
        if name in (BASELINE, "ours"):
            module = bottom_up(getattr(networks, name))
        elif name == "torchvision":
            module = torchvision_rcnn.build_backbone(networks.cfg, bottom_up(networks.detectron2))
        elif name.startswith("onnx-"):
            example = networks.normalised(networks.image[None])
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "backbone.onnx"
                exported.write_onnx(bottom_up(networks.detectron2), example, file)
                return exported.read_onnx(file, name.removeprefix("onnx-"), streams)
        else:
            return self._compiled_backbone(name, streams)
        return without_gradients(lambda images: list(module(images).values()))

    def _compiled_backbone(self, name: str, streams: int) -> Function:
        networks = self.networks
        engine, precision = name.split("-")
        engine = choose_engine(_ENGINES[engine])
        if precision != "int8":
            part = bottom_up_name(networks.ours)
            return compile_submodule(networks.ours, part, engine, precision, streams)
        part = Part(bottom_up_name(networks.ours))
        images = [b[0]["image"][None] for b in networks.calibration]
        return _quantize(networks.ours, part, [networks.normalised(i) for i in images], streams)


def title_of(engine: str) -> str:
    """What tables call ours in float32, compiled by an engine."""
    return next(TITLES[f"{name}-f32"] for name, known in _ENGINES.items() if known == engine)


def compile_submodule(
    model: nn.Module, name: str, engine: str, precision: str, streams: int = 1
) -> Callable:
    """Compile one submodule of a detector alone.

    Args:
        model: the detector, in evaluation mode.
        name: of the submodule.
        engine: see `compile_part`.
        precision: see `compile_part`.
        streams: see `compile_part`.

    Returns:
        A function of the tensors that the submodule takes.
    """
    ((_, module, call),) = modules_of(model, [Part(name)])
    return compile_part(module, call.inputs, engine=engine, precision=precision, streams=streams)


def _quantize(model: nn.Module, part: Part, inputs: Sequence[Tensor], streams: int) -> Function:
    """`resnext_det.deploy.quantize` for a backbone alone."""
    ((_, module, call),) = modules_of(model, [part])
    arrays = [[to_array(i)] for i in inputs]
    quantized = quantize_part(module, call.inputs, arrays, len(arrays))
    return OpenVINORun(quantized, "f32", streams)


def without_gradients(function: Callable) -> Callable:
    """The same function without a graph for gradients."""

    def run(images: Tensor) -> Sequence:
        with torch.no_grad():
            return function(images)

    return run
