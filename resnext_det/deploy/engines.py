"""What runs compiled parts on a CPU: OpenVINO, torch.compile, or PyTorch's own kernels.

An engine takes a module of tensors and gives a function of tensors. PyTorch's engines compute in
channels_last and give maps in it; OpenVINO chooses the layouts inside a part itself, and its
inputs and results are contiguous: with results in channels_last a backbone took a seventh longer.
"""

import contextlib
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import FunctionType

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError, one_line
from .optional import import_package, openvino_core, quiet

logger = logging.getLogger(__name__)

ENGINES = ("openvino", "torch.compile", "eager")  # fastest first
PRECISIONS = ("f32", "bf16")

_RECOMPILE_LIMIT = 64  # graphs of a part
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx_ne_convert")
_NO_BF16 = "precision bf16: this CPU has no bfloat16 instructions, it would be slower; use f32"

Run = Callable[..., Sequence[Tensor]]


def why_missing(engine: str) -> str | None:
    """What an engine lacks to run here; None for nothing.

    Args:
        engine: one of `ENGINES`.
    """
    if engine == "openvino":
        try:
            import_package("openvino.tools.ovc")
        except UserError as error:
            return str(error)
    elif engine == "torch.compile":
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return "torch.compile needs a C++ compiler: install g++"
        return _why_compiling_fails(compiler)
    return None


@cache
def _why_compiling_fails(compiler: str) -> str | None:
    """Try torch.compile, which finds out what it lacks only when a function is called."""
    try:
        with quiet():
            torch.compile(lambda x: x + 1, dynamic=True)(torch.zeros(2))
    except Exception as error:  # of the compiler, its headers, or torch itself
        reason = next((line for line in str(error).splitlines() if " error: " in line), error)
        return (
            f"torch.compile fails here ({one_line(reason)}): install g++ and the headers of Python"
        )
    return None


def choose_engine(name: str | None = None) -> str:
    """The engine asked for, or the fastest one that can run; says what a faster one lacks.

    Raises:
        UserError: for an engine that is unknown or cannot run.
    """
    if name is None:
        for engine in ENGINES:
            reason = why_missing(engine)
            if reason is None:
                return engine
            logger.warning("a faster engine is missing: %s", reason)
    if name not in ENGINES:
        raise UserError(f"engine {name!r} is not one of {', '.join(ENGINES)}")
    if reason := why_missing(name):
        raise UserError(reason)
    return name


def compile_part(
    module: nn.Module, example: tuple[Tensor, ...], *, engine: str, precision: str, streams: int
) -> Run:
    """Compile a module of tensors.

    Args:
        module: maps tensors (N, ...) to a tuple of tensors (N, ...), in evaluation mode.
        example: inputs to trace it with; N, H and W may differ later.
        engine: one of `ENGINES`.
        precision: "f32" or "bf16", of the layers; inputs and results are float32.
        streams: calls that run at the same time, each with its share of the threads.

    Returns:
        A function of such tensors. Several threads may call it.

    Raises:
        UserError: for bf16 on a CPU that has no instructions for it.
    """
    if engine == "openvino":
        return OpenVINORun(to_openvino(module, example), precision, streams)
    check_bf16(precision)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    return _in_torch(module.to(kind), kind, compiled=engine == "torch.compile")


def check_bf16(precision: str) -> None:
    """Refuse bf16 where it would be emulated, slower than float32.

    Raises:
        UserError: on a CPU without bfloat16 instructions.
    """
    describe = getattr(torch.cpu, "get_capabilities", dict)  # older versions cannot tell
    capabilities = describe()
    on_x86 = capabilities.get("architecture") == "x86_64"
    if precision == "bf16" and on_x86 and not any(map(capabilities.get, _BF16_INSTRUCTIONS)):
        raise UserError(_NO_BF16)


def _in_torch(module: nn.Module, kind: torch.dtype, *, compiled: bool) -> Run:
    """Run a module in `kind` on float32 tensors."""

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(r.float() for r in module(*(t.to(kind) for t in tensors)))

    if compiled:
        # dynamo counts recompilations by code object: of each part its own, not of all together
        code = forward.__code__.replace(co_name=f"forward_{id(module)}")
        forward = FunctionType(code, globals(), code.co_name, None, forward.__closure__)
        forward = torch.compile(forward, dynamic=True, options={"freezing": True})

    @torch.no_grad()
    def run(*tensors: Tensor) -> Sequence[Tensor]:
        with _for_any_size():
            return forward(*map(to_channels_last, tensors))

    return run


@contextlib.contextmanager
def _for_any_size() -> Iterator[None]:
    """What torch.compile has to know in a call that may compile.

    A square image is no reason to take height and width for one number. Batches and much smaller
    images, for which PyTorch takes other kernels, are compiled anew, and never left uncompiled.
    """
    with (
        torch.fx.experimental._config.patch(use_duck_shape=False),
        torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT),
    ):
        yield


def to_channels_last(tensor: Tensor) -> Tensor:
    """Maps (N, C, H, W) in channels_last, other tensors contiguous."""
    if tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous()


def to_openvino(module: nn.Module, example: tuple[Tensor, ...]):
    """Convert a module to an `openvino.Model` with dynamic N, H and W.

    Args:
        module: maps tensors to a tuple of tensors.
        example: inputs to trace it with.
    """
    import_package("openvino.tools.ovc")
    openvino = import_package("openvino")
    with torch.no_grad(), quiet():
        model = openvino.convert_model(module, example_input=example)
    shapes = {}
    for port, tensor in zip(model.inputs, example, strict=True):
        free = [-1] * (tensor.dim() - 2)
        shapes[port] = openvino.PartialShape([-1, tensor.shape[1], *free])
    model.reshape(shapes)
    return model


class OpenVINORun:
    """An `openvino.Model` of `to_openvino` as a function of tensors."""

    def __init__(self, model: object, precision: str, streams: int = 1) -> None:
        """Compile the model for the CPU, on as many threads as torch uses.

        Args:
            model: of `to_openvino`, or what quantisation made of it.
            precision: "f32" or "bf16", of what is not quantised.
            streams: see `compile_part`.

        Raises:
            UserError: for bf16 on a CPU that has no instructions for it.
        """
        self._openvino = import_package("openvino")
        core = openvino_core()
        if precision == "bf16" and "BF16" not in core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise UserError(_NO_BF16)
        self.compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            },
        )
        # requests, each for a thread at a time; each keeps the memory that its largest call took
        self._idle: deque = deque(maxlen=max(streams, 2))

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Run on float32 tensors. A request serves again when nobody holds its results."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        arrays = [to_array(t) for t in tensors]  # which the request reads, and does not keep
        for port, array in zip(self.compiled.inputs, arrays, strict=True):
            request.set_tensor(port, self._openvino.Tensor(array, shared_memory=True))
        request.infer()
        lease = _Lease(request, self._idle)
        return [lease.result(port) for port in self.compiled.outputs]


class _Lease:
    """Keeps a request from running again while one of its results is alive.

    Results stay in the request's memory: copies of feature maps cost a tenth of the whole run.
    """

    def __init__(self, request: object, idle: deque) -> None:
        self.request = request
        self.idle = idle

    def result(self, port: object) -> Tensor:
        array = self.request.get_tensor(port).data.view(_Leased)
        array.lease = self
        return torch.from_numpy(array)

    def __del__(self) -> None:
        self.idle.append(self.request)


class _Leased(np.ndarray):
    """An array with its lease; a tensor of it keeps both."""

    lease: _Lease


def to_array(tensor: Tensor) -> np.ndarray:
    """What a model of `to_openvino` takes."""
    return tensor.detach().contiguous().numpy()
