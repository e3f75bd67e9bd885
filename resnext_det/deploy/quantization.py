"""Post-training quantisation of a detector's layers to int8, by NNCF, for OpenVINO."""

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from torch import Tensor, nn

from ..errors import UserError
from .compiled import optimize, rebuild
from .engines import OpenVINORun, Run, to_array, to_openvino
from .optional import import_package, one_core, quiet
from .parts import Call, Part, PartModule, iterate_inputs
from .quantized import Quantized, fingerprint_of

logger = logging.getLogger(__name__)


def quantize(model: nn.Module, batches: Collection[list[dict]]) -> Quantized:
    """Quantise the weights and activations of a detector's parts to int8.

    Ranges of activations are those that the float32 detector has on the batches; a per-channel
    scale for weights, and NNCF's correction of the biases.

    Args:
        model: see `optimize`.
        batches: images to calibrate with, as Detectron2's models take them. They are gone through
            for each part, more than once.

    Returns:
        The parts, whose `detector(model)` runs.

    Raises:
        UserError: if OpenVINO or NNCF is absent, for a model that cannot be optimised, or if a part
            gets no input from any image.
    """
    require_packages()
    running = optimize(model, engine="openvino")
    models: dict[str, object] = {}

    def build(part: Part, module: PartModule, call: Call) -> Run:
        inputs = _Inputs(running, part, batches)
        if next(iter(inputs), None) is None:
            raise UserError(
                f"none of the images to calibrate with gives {part.name} anything: take more"
            )
        logger.info("quantising %s", part.name)
        models[part.name] = quantize_part(module, call.inputs, inputs, len(batches))
        return OpenVINORun(models[part.name], "f32")

    rebuild(model, build)
    return Quantized(models, fingerprint_of(model))


def require_packages() -> None:
    """Check that quantisation can run.

    Raises:
        UserError: if OpenVINO or NNCF is absent.
    """
    for name in ("openvino.tools.ovc", "nncf"):
        import_package(name)


def quantize_part(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Iterable[Sequence[np.ndarray]],
    count: int,
):
    """Quantise a module of tensors to int8.

    Args:
        module: maps tensors to a tuple of tensors.
        example: inputs to trace it with.
        inputs: arrays to calibrate with; gone through several times.
        count: of them, at most; a fifth of so many correct the biases.

    Returns:
        An `openvino.Model`.

    Raises:
        UserError: if OpenVINO or NNCF is absent.
    """
    nncf = import_package("nncf")
    with quiet(), one_core():  # it prints progress bars, three for each part
        return nncf.quantize(
            to_openvino(module, example),
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=count,
        )


class _Inputs:
    """What goes into a part, image by image, anew each time: all at once would fill the memory."""

    def __init__(self, model: nn.Module, part: Part, batches: Iterable[list[dict]]) -> None:
        self.arguments = model, part, batches

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        for tensors in iterate_inputs(*self.arguments):
            yield [to_array(t) for t in tensors]
