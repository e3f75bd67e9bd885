"""A backbone as an ONNX file, as other programs would run it."""

import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..optional import import_package, openvino_core, quiet

_INPUT = "images"


def write_onnx(module: nn.Module, example: Tensor, file: Path) -> None:
    """Export a module as it is: batch norms are left for the runtimes to fold.

    Args:
        module: maps (N, 3, H, W) to a dict of maps, in evaluation mode.
        example: an input; N, H and W may differ later.
        file: to write.

    Raises:
        UserError: if the packages that write ONNX are absent.
    """
    import_package("onnx")
    import_package("onnxscript")
    free = {0: "images", 2: "height", 3: "width"}
    shapes = {axis: torch.export.Dim.DYNAMIC for axis in free}
    with quiet(), torch.no_grad():
        torch.onnx.export(
            _Values(module),
            (example,),
            str(file),
            input_names=[_INPUT],
            dynamic_shapes=(shapes,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def read_onnx(file: Path, runtime: str, streams: int = 1) -> Callable[[Tensor], list]:
    """Load an ONNX file for the CPU, on as many threads as torch uses.

    Args:
        file: of `write_onnx`; it may go afterwards.
        runtime: "onnxruntime" or "openvino".
        streams: calls that run at the same time, each with its share of the threads.

    Returns:
        From (N, 3, H, W) float32 to a list of arrays, which the next call may overwrite.

    Raises:
        UserError: if the runtime is absent.
    """
    threads = torch.get_num_threads()
    if runtime == "onnxruntime":
        package = import_package(runtime)
        options = package.SessionOptions()
        options.intra_op_num_threads = max(threads // streams, 1)
        session = package.InferenceSession(
            file.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        return lambda images: session.run(None, {_INPUT: images.numpy()})
    hints = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads}
    hints["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino_core().compile_model(str(file), "CPU", hints)

    local = threading.local()  # a request serves one call at a time

    def run(images: Tensor) -> list:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        return list(local.request.infer([images.numpy()], share_outputs=True).values())

    return run


class _Values(nn.Module):
    """A module's maps without their names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(images).values())
