"""The time of each part of a detector."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from ..compiled import optimize
from ..engines import choose_engine
from ..parts import Part, record_calls
from .measure import in_turn
from .networks import Networks, bottom_up_name
from .settings import BASELINE, TITLES
from .sides import compile_submodule, title_of

_STAGES = ("stem", "res2", "res3", "res4", "res5")
_POOLERS = ("box_pooler", "pooler", "mask_pooler", "keypoint_pooler")
_HEADS = ("box_head", "box_predictor", "res5", "mask_head", "keypoint_head")


def time_parts(networks: Networks) -> dict[str, dict[str, float]]:
    """Time the parts of Detectron2, of ours, and of ours for the fastest engine in float32.

    That engine has backbone and FPN in one piece. The stages are compiled one by one to be timed;
    what the piece takes beyond the backbone alone, in one piece, is said to be FPN's.

    Returns:
        Of each side the median seconds of each part, in the order in which they run, and of the
        whole. Parts that a detector has not are absent.
    """
    settings = networks.settings
    engine = choose_engine()
    sides = {
        TITLES[BASELINE]: networks.detectron2,
        TITLES["ours"]: networks.ours,
        title_of(engine): optimize(networks.ours, engine=engine),
    }
    clocks = {title: _Clock(model) for title, model in sides.items()}
    inputs = [{"image": networks.image}]
    calls = {title: (lambda c=clock: c.run(inputs)) for title, clock in clocks.items()}
    in_turn(calls, settings.repeats, max(settings.warmup, 1))
    parts = {title: clock.medians(settings.repeats) for title, clock in clocks.items()}
    for clock in clocks.values():
        clock.remove()
    compiled = parts[title_of(engine)]
    stages, bottom_up = _time_stages(networks, inputs, engine)
    backbone = compiled.pop("backbone")
    if hasattr(networks.ours.backbone, "bottom_up"):
        stages["FPN"] = backbone - bottom_up
    names = list(parts[TITLES["ours"]])
    compiled |= stages
    parts[title_of(engine)] = {name: compiled[name] for name in names if name in compiled}
    return parts


def _time_stages(
    networks: Networks, inputs: list[dict], engine: str
) -> tuple[dict[str, float], float]:
    """Median seconds of the stem and each stage, compiled alone, and of all in one piece."""
    model, prefix = networks.ours, bottom_up_name(networks.ours)
    present = dict(model.get_submodule(prefix).named_children())
    paths = {name: f"{prefix}.{name}" for name in _STAGES if name in present} | {prefix: prefix}
    recorded = record_calls(model, [Part(path) for path in paths.values()], inputs)
    calls: dict[str, Callable[[], object]] = {}
    for name, path in paths.items():
        function = compile_submodule(model, path, engine, "f32")
        tensors = recorded[path].inputs
        if engine == "openvino":  # as one stage hands them to the next
            tensors = tuple(t.contiguous() for t in tensors)
        calls[name] = lambda function=function, tensors=tensors: function(*tensors)
    settings = networks.settings
    seconds = in_turn(calls, settings.repeats, max(settings.warmup, 1))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return medians, medians.pop(prefix)


class _Clock:
    """Notes when the submodules of a detector start and end."""

    def __init__(self, model: nn.Module) -> None:
        """Hook into `model` until `remove`."""
        self.model = model
        self.bottom_up = bottom_up_name(model)
        self.runs: list[dict[str, float]] = []
        self._spans: dict[str, list[list[float]]] = defaultdict(list)
        self._handles = []
        for name in self._names():
            module = model.get_submodule(name)
            several = module if isinstance(module, nn.ModuleList) else [module]  # of a cascade
            for each in several:
                self._watch(name, each)

    def _names(self) -> list[str]:
        present = dict(self.model.named_modules())
        wanted = [
            "backbone",
            *(f"{self.bottom_up}.{stage}" for stage in _STAGES),
            "head",  # RetinaNet's
            "proposal_generator",
            "proposal_generator.rpn_head",
            "roi_heads",
            *(f"roi_heads.{name}" for name in (*_POOLERS, *_HEADS)),
        ]
        return [name for name in wanted if present.get(name) is not None]

    def _watch(self, name: str, module: nn.Module) -> None:
        spans = self._spans

        def start(*_: object) -> None:
            spans[name].append([time.perf_counter()])

        def end(*_: object) -> None:
            spans[name][-1].append(time.perf_counter())

        self._handles.append(module.register_forward_pre_hook(start))
        self._handles.append(module.register_forward_hook(end))

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()

    def run(self, inputs: list[dict]) -> None:
        """Run the detector once, and add what each part took to `runs`."""
        self._spans.clear()
        start = time.perf_counter()
        with torch.no_grad():
            self.model(inputs)
        end = time.perf_counter()
        self.runs.append(self._split(start, end))

    def _split(self, start: float, end: float) -> dict[str, float]:
        spans = self._spans

        def took(names: Sequence[str]) -> float:
            return sum(b - a for name in names for a, b in spans.get(name, ()))

        parts = {"preparation": spans["backbone"][0][0] - start}
        stages = {s: took([f"{self.bottom_up}.{s}"]) for s in _STAGES}
        parts |= {stage: seconds for stage, seconds in stages.items() if seconds}
        if not any(stages.values()):
            parts["backbone"] = took(["backbone"])  # compiled in one piece
        elif self.bottom_up != "backbone":
            parts["FPN"] = took(["backbone"]) - sum(stages.values())
        if "head" in spans:
            parts["RetinaNet head"] = took(["head"])
        if "proposal_generator" in spans:
            parts["RPN head"] = took(["proposal_generator.rpn_head"])
            parts["proposals"] = took(["proposal_generator"]) - parts["RPN head"]
        if "roi_heads" in spans:
            parts["RoI pooling"] = took([f"roi_heads.{name}" for name in _POOLERS])
            parts["RoI layers"] = took([f"roi_heads.{name}" for name in _HEADS])
            parts["results"] = took(["roi_heads"]) - parts["RoI pooling"] - parts["RoI layers"]
        parts["postprocessing"] = end - max(span[-1][1] for span in spans.values())
        parts["whole"] = end - start
        return parts

    def medians(self, repeats: int) -> dict[str, float]:
        """Median seconds of each part over the last runs."""
        runs = self.runs[-repeats:]
        return {part: float(np.median([run[part] for run in runs])) for part in runs[0]}
