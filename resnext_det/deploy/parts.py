"""The parts of a detector that are nothing but layers, and can be compiled.

Proposals, pooling and the selection of results stay Detectron2's code: it calls the parts by their
methods, and `bind` puts another function in a method's place.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.modeling import GeneralizedRCNN, ProposalNetwork, RetinaNet
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.modeling.roi_heads.keypoint_head import BaseKeypointRCNNHead
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..errors import UserError


@dataclass(frozen=True)
class Part:
    """A method of a detector's submodule that maps tensors to tensors.

    Attributes:
        name: the submodule's, e.g. "proposal_generator.rpn_head".
        method: "forward", or "layers" of mask and keypoint heads, whose forward goes on to results.
    """

    name: str
    method: str = "forward"

    def module(self, model: nn.Module) -> nn.Module:
        """The submodule in `model`."""
        return model.get_submodule(self.name)

    def bind(self, model: nn.Module, function: Callable) -> None:
        """Let `model` call `function` in the method's place."""
        self.module(model).__dict__[self.method] = function

    def is_compiled(self, model: nn.Module) -> bool:
        """Whether the method has been replaced in `model` by a compiled one."""
        return isinstance(self.module(model).__dict__.get(self.method), CompiledPart)

    @contextlib.contextmanager
    def bound(self, model: nn.Module, function: Callable) -> Iterator[None]:
        """Let `model` call `function` for a while."""
        methods = self.module(model).__dict__
        before = methods.get(self.method)
        methods[self.method] = function
        try:
            yield
        finally:
            del methods[self.method]
            if before is not None:
                methods[self.method] = before


def find_parts(model: nn.Module) -> list[Part]:
    """List the parts of a detector, in the order in which they run.

    Raises:
        UserError: for a model that is no R-CNN, RetinaNet or RPN of Detectron2.
    """
    if isinstance(model, RetinaNet):
        return [Part("backbone"), Part("head")]
    if isinstance(model, ProposalNetwork):
        return [Part("backbone"), Part("proposal_generator.rpn_head")]
    if not isinstance(model, GeneralizedRCNN):
        raise UserError(
            f"{type(model).__name__} cannot be optimised: GeneralizedRCNN, RetinaNet and "
            "ProposalNetwork can"
        )
    parts = [Part("backbone")]
    if model.proposal_generator is not None:
        parts.append(Part("proposal_generator.rpn_head"))
    heads = model.roi_heads
    if isinstance(heads, Res5ROIHeads):
        parts.append(Part("roi_heads.res5"))
    box_head = getattr(heads, "box_head", None)
    if isinstance(box_head, nn.ModuleList):  # cascade
        parts += [Part(f"roi_heads.box_head.{i}") for i in range(len(box_head))]
    elif box_head is not None:
        parts.append(Part("roi_heads.box_head"))
    for name, kind in (("mask_head", BaseMaskRCNNHead), ("keypoint_head", BaseKeypointRCNNHead)):
        head = getattr(heads, name, None)
        if isinstance(head, kind) and hasattr(head, "layers"):
            parts.append(Part(f"roi_heads.{name}", "layers"))
    return parts


def strip(part: Part, model: nn.Module) -> None:
    """Take a part's parameters and buffers out of `model`: what is compiled has its own."""
    for module in part.module(model).modules():
        for name in module._parameters:
            module._parameters[name] = None
        for name in module._buffers:
            module._buffers[name] = None


@dataclass(frozen=True)
class Call:
    """One call of a part: the tensors that went in, and how arguments and results are built.

    Attributes:
        inputs: (N, ...) tensors, float32.
        outputs: what came out, likewise.
        arguments: structure of the positional arguments, whose leaves are `inputs`.
        results: structure of what the part returns.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    arguments: TreeSpec
    results: TreeSpec


def record_calls(model: nn.Module, parts: Sequence[Part], inputs: list[dict]) -> dict[str, Call]:
    """Run a detector on `inputs` and record the first call of each part.

    Args:
        model: the detector, in evaluation mode; it is left as it was.
        parts: of `find_parts(model)`.
        inputs: as Detectron2's models take them.

    Returns:
        By the part's name; parts that did not run are absent.
    """
    calls: dict[str, Call] = {}

    def recorder(part: Part) -> Callable:
        method = getattr(part.module(model), part.method)

        def record(*args: object) -> object:
            result = method(*args)
            if part.name not in calls:
                inputs, arguments = tree_flatten(args)
                outputs, results = tree_flatten(result)
                kept = tuple(o.clone() for o in outputs)  # RetinaNet goes on in place
                calls[part.name] = Call(tuple(inputs), kept, arguments, results)
            return result

        return record

    with contextlib.ExitStack() as stack, torch.no_grad():
        for part in parts:
            stack.enter_context(part.bound(model, recorder(part)))
        model(inputs)
    return calls


class _Reached(Exception):
    """A part was called, and the rest of the detector need not run."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = inputs


def iterate_inputs(
    model: nn.Module, part: Part, batches: Iterable[list[dict]]
) -> Iterator[tuple[Tensor, ...]]:
    """Run a detector on batches up to one part, and yield what goes into that.

    Args:
        model: see `record_calls`.
        part: of `find_parts(model)`.
        batches: inputs, as Detectron2's models take them.

    Yields:
        The tensors (N, ...) of the first call in each batch, unless N is 0.
    """

    def stop(*args: object) -> None:
        raise _Reached(tuple(tree_flatten(args)[0]))

    for batch in batches:
        try:
            with part.bound(model, stop), torch.no_grad():
                model(batch)
        except _Reached as reached:
            if len(reached.inputs[0]):
                yield reached.inputs


class PartModule(nn.Module):
    """A part with its norms folded, as a function of tensors alone, which engines compile."""

    def __init__(self, module: nn.Module, method: str, arguments: TreeSpec) -> None:
        """Wrap `module`, whose `method` takes arguments of that structure."""
        super().__init__()
        self.module = module
        self.method = method
        self.arguments = arguments

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Map the leaves of the arguments to those of the result."""
        args = tree_unflatten(tensors, self.arguments)
        return tuple(tree_flatten(getattr(self.module, self.method)(*args))[0])


class CompiledPart:
    """What is bound in a part's place: arguments to tensors, `run`, tensors to results."""

    def __init__(self, run: Callable[..., Sequence[Tensor]], call: Call) -> None:
        """Make `run` callable as the part was in `call`."""
        self.run = run
        self.arguments = call.arguments
        self.results = call.results

    def __call__(self, *args: object) -> object:
        """Call it as the part's own method."""
        tensors, structure = tree_flatten(args)
        if structure != self.arguments:
            raise TypeError(f"compiled for arguments like {self.arguments}, called with {args}")
        empty = len(tensors[0]) == 0
        if empty:  # no boxes, say: engines want some
            tensors = [t.new_zeros(1, *t.shape[1:]) for t in tensors]
        results = self.run(*tensors)
        if empty:
            results = [r[:0] for r in results]
        return tree_unflatten(list(results), self.results)
