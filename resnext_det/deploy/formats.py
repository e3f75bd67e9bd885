"""Writing a module of tensors, `ExportedRCNN`, in the formats that other programs run."""

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError, one_line
from .card import KEY, MEMBER
from .optional import import_package, quiet

INPUT = "image"

# What a format needs, to be written and to be run
_PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino.tools.ovc", "openvino"),
}

_WRITTEN_ALWAYS = ("version", ".data/serialization_id")

_ASSERTIONS = (
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten._assert_tensor_metadata.default,
)


def require_packages(format: str) -> None:
    """Check that a format can be written and run.

    Raises:
        UserError: for the first package that is not installed.
    """
    for package in _PACKAGES.get(format, ()):
        import_package(package)


def write(
    module: nn.Module, image: Tensor, names: tuple[str, ...], card: str, format: str, file: Path
) -> None:
    """Export a module for images of any size.

    Args:
        module: in evaluation mode, on the CPU.
        image: (H, W, 3) RGB uint8, with detections in it, to trace the module with.
        names: of its outputs.
        card: text to store in the file.
        format: one of `runtimes.SUFFIXES`.
        file: to write, with that suffix; "openvino" writes also .bin beside it.

    Raises:
        UserError: if the format's exporter is not installed, or fails.
    """
    writers: dict[str, Callable] = {
        "onnx": _write_onnx,
        "openvino": _write_openvino,
        "torchscript": _write_torchscript,
        "torch_export": _write_torch_export,
    }
    try:
        with quiet(), torch.no_grad():
            writers[format](module, image, names, card, file)
    except (UserError, OSError):
        raise
    except Exception as error:  # exporters raise whatever they like on what they do not know
        raise UserError(f"the detector cannot be written as {format}: {one_line(error)}") from error


def _write_torchscript(
    module: nn.Module, image: Tensor, names: tuple[str, ...], card: str, file: Path
) -> None:
    whole = io.BytesIO()
    scripted = torch.jit.trace(module, (image,), check_trace=False)
    torch.jit.save(scripted, whole, _extra_files={MEMBER: card})
    whole.seek(0)
    reader = torch._C.PyTorchFileReader(whole)
    with file.open("wb") as stream:
        writer = torch._C.PyTorchFileWriter(stream)
        for name in reader.get_all_records():
            # without source lines and images of this machine, and what the writer adds of itself
            private = name.endswith(".debug_pkl") or name.startswith("traced_inputs")
            if not private and name not in _WRITTEN_ALWAYS:
                record = reader.get_record(name)
                writer.write_record(name, record, len(record))
        writer.write_end_of_file()


def _write_torch_export(
    module: nn.Module, image: Tensor, names: tuple[str, ...], card: str, file: Path
) -> None:
    program = _export(module, image)
    program.example_inputs = ((torch.zeros_like(image),), {})  # not the user's image
    with file.open("wb") as stream:
        torch.export.save(program, stream, extra_files={MEMBER: card})


def _write_onnx(
    module: nn.Module, image: Tensor, names: tuple[str, ...], card: str, file: Path
) -> None:
    program = _to_onnx(module, image, names)
    program.model.metadata_props[KEY] = card
    program.save(str(file))


def _write_openvino(
    module: nn.Module, image: Tensor, names: tuple[str, ...], card: str, file: Path
) -> None:
    import_package("openvino.tools.ovc")  # the converter, which `convert_model` looks for
    openvino = import_package("openvino")
    if any(getattr(part, "is_max", False) for part in module.modules()):
        # OpenVINO reads ROIPool from ONNX, but not from PyTorch
        program = _to_onnx(module, image, names)
        model = openvino.convert_model(io.BytesIO(program.model_proto.SerializeToString()))
    else:
        model = openvino.convert_model(module, example_input=(image,))
    model.reshape(openvino.PartialShape([-1, -1, 3]))
    model.inputs[0].tensor.set_names({INPUT})
    for port, name in zip(model.outputs, names, strict=True):
        port.tensor.set_names({name})
    model.set_rt_info(card, [KEY])
    openvino.save_model(model, str(file), compress_to_fp16=False)


def _to_onnx(module: nn.Module, image: Tensor, names: tuple[str, ...]):
    """Convert to a `torch.onnx.ONNXProgram`."""
    import_package("onnx")
    onnxscript = import_package("onnxscript")

    op = onnxscript.opset18

    def roi_pool(input, boxes, spatial_scale, pooled_height, pooled_width):
        # onnxscript's own takes other arguments than the operation has
        size = (pooled_height, pooled_width)
        pooled = op.MaxRoiPool(input, boxes, pooled_shape=size, spatial_scale=spatial_scale)
        return pooled, op.Identity(pooled)  # the second, where maxima are, nobody uses

    program = torch.onnx.export(
        _export(module, image),
        (image,),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=list(names),
        custom_translation_table={torch.ops.torchvision.roi_pool.default: roi_pool},
    )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # source lines of this machine
    return program


def _export(module: nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    """Capture a module for any H and W, without what the capture assumed of sizes.

    A program asserts these assumptions when it runs, and two of them do not hold: that NMS keeps at
    least two boxes, and that no map is of one pixel. Its operations do not depend on them.
    """
    sides = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(
        module,
        (image,),
        dynamic_shapes=(sides,),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    graph = program.graph
    for node in list(graph.nodes):
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
            continue
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
            node.meta.pop(key, None)  # paths and source lines of this machine
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    program._guards_code = []  # the same assumptions once more, as Python
    return program
