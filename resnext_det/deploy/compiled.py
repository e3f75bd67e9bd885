"""A detector with the same interface that runs faster on a CPU."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from ..errors import UserError
from ..modeling.fast import accelerate
from .engines import PRECISIONS, Run, choose_engine, compile_part
from .folding import fold_norms
from .parts import Call, CompiledPart, Part, PartModule, find_parts, record_calls, strip
from .winograd import rpn_head_by_winograd

logger = logging.getLogger(__name__)

_LARGEST_ERROR = 0.5  # of a part's results; bfloat16 has a hundredth
_EXAMPLE_SIZE = (256, 320)  # pixels; two different numbers, so that none is taken for the other


def optimize(
    model: nn.Module, precision: str = "f32", *, engine: str | None = None, streams: int = 1
) -> nn.Module:
    """Copy a trained detector for fast inference on a CPU.

    Backbone with FPN, RPN head, and box, mask and keypoint heads are compiled with batch norms
    folded into convolutions, for images of any size. Proposals and results are selected by
    Detectron2's own code in float32, and regions are pooled on all threads. For OpenVINO in float32
    the RPN head's large maps go through `winograd`.

    Args:
        model: a GeneralizedRCNN, RetinaNet or ProposalNetwork on the CPU, C4 or FPN, with this
            package's ResNeXt or Detectron2's ResNet. It is not changed.
        precision: "f32", or "bf16" for bfloat16 in the compiled layers.
        engine: "openvino", "torch.compile" or "eager"; None for the fastest that is installed.
        streams: images that other threads may run at the same time, each on its share of
            `torch.get_num_threads()`.

    Returns:
        A detector that is called as `model` is, in evaluation mode; it cannot be trained or saved.

    Raises:
        UserError: for another kind of model, a model on a GPU, an unknown or absent engine, or bf16
            on a CPU without instructions for it.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"precision {precision!r} is not one of {', '.join(PRECISIONS)}; for int8 see "
            "resnext_det.deploy.quantization"
        )
    if type(streams) is not int or streams < 1:
        raise UserError(f"streams {streams!r}: give a whole number from 1")
    engine = choose_engine(engine)

    def build(part: Part, module: PartModule, call: Call) -> Run:
        # whose threads are one pool that streams would wait for
        by_winograd = engine == "openvino" and precision == "f32" and streams == 1
        if by_winograd and (run := rpn_head_by_winograd(module.module)):
            return run
        return compile_part(
            module, call.inputs, engine=engine, precision=precision, streams=streams
        )

    detector = rebuild(model, build, check=engine == "openvino")
    logger.info("optimised for %s in %s", engine, precision)
    return detector


def rebuild(
    model: nn.Module, build: Callable[[Part, PartModule, Call], Run], *, check: bool = False
) -> nn.Module:
    """Copy a detector with each part replaced by what `build` makes of it.

    Args:
        model: see `optimize`.
        build: gets a part, its module with norms folded, and a call with inputs of one image.
        check: compare each part at another size than that of the call. Engines that trace can
            make a constant of a size.

    Raises:
        UserError: for a model that has no such parts, that is on a GPU or not in float32, or that
            is optimised already.
    """
    parts = find_parts(model)
    if any(part.is_compiled(model) for part in parts):
        raise UserError("the detector is optimised already: optimise the one that it is made of")
    if model.device.type != "cpu":
        raise UserError(
            f"the model is on {model.device}: it is optimised for CPUs alone, MODEL.DEVICE cpu"
        )
    if other := {p.dtype for p in model.parameters()} - {torch.float32}:
        raise UserError(f"the model is in {other.pop()}: optimise one in float32, model.float()")
    detector = accelerate(copy.deepcopy(model)).eval()
    with torch.autocast("cpu", enabled=False):
        turned = example_image(detector, turned=True)
        others = record_calls(detector, parts, [turned]) if check else {}
        for part, module, call in modules_of(detector, parts):
            compiled = CompiledPart(build(part, module, call), call)
            if check:
                _check_at_another_size(part, compiled.run, others.pop(part.name))
            part.bind(detector, compiled)
            strip(part, detector)
    _refuse_training_and_saving(detector)
    return detector


def modules_of(model: nn.Module, parts: Sequence[Part]) -> Iterator[tuple[Part, PartModule, Call]]:
    """The parts as modules of tensors with norms folded, each with a call on an example image.

    Args:
        model: a detector in evaluation mode.
        parts: of it; those that do not run on an image are left out.
    """
    calls = record_calls(model, parts, [example_image(model)])
    for part in parts:
        if part.name in calls:
            call = calls.pop(part.name)
            folded = fold_norms(part.module(model))
            yield part, PartModule(folded, part.method, call.arguments), call


def _check_at_another_size(part: Part, run: Run, call: Call) -> None:
    """Refuse a part that computes something else than the detector's at a size not traced."""
    found = run(*call.inputs) if len(call.inputs[0]) else ()
    for ours, theirs in zip(found, call.outputs, strict=bool(found)):
        same = ours.shape == theirs.shape
        if not same or (ours - theirs).norm() > _LARGEST_ERROR * theirs.norm():
            raise UserError(
                f"the detector's {part.name} depends on the size of the image in a way that "
                'OpenVINO does not keep: optimise it with engine="eager"'
            )


def example_image(model: nn.Module, *, turned: bool = False) -> dict:
    """An input of a detector, of noise, with a proposal for those that make none themselves.

    Args:
        model: the detector.
        turned: exchange height and width.
    """
    height, width = reversed(_EXAMPLE_SIZE) if turned else _EXAMPLE_SIZE
    generator = torch.Generator().manual_seed(0)
    proposals = Instances((height, width))
    proposals.proposal_boxes = Boxes(torch.tensor([[32.0, 32.0, 160.0, 128.0]]))
    proposals.objectness_logits = torch.zeros(1)
    size = (len(model.pixel_mean), height, width)
    return {
        "image": torch.randint(0, 256, size, generator=generator).float(),
        "proposals": proposals,
    }


def _refuse_training_and_saving(detector: nn.Module) -> None:
    """What would change or write half of a detector: the weights of its parts are in an engine."""

    def train(mode: bool = True) -> nn.Module:
        if mode:
            raise UserError("an optimised detector cannot be trained: train the one it is made of")
        return detector

    def refuse(*args: object, **kwargs: object) -> None:
        raise UserError(
            "an optimised detector cannot be saved, loaded or copied: use the one it is made of"
        )

    detector.__dict__.update(
        train=train, state_dict=refuse, load_state_dict=refuse, __deepcopy__=refuse
    )
