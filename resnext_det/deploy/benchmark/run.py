"""The benchmark from settings to a report."""

import gc
import logging
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from ...errors import UserError, one_line
from .agreement import compare_detections, compare_maps
from .forms import time_forms
from .measure import (
    MATRIX_PRODUCT_FLOPS,
    in_turn,
    matrix_product,
    seconds_of,
    streams_in_turn,
)
from .memory import is_measurable, measure_memory
from .networks import Networks, bottom_up
from .parts import time_parts
from .results import Rate, Report, Row, describe_machine
from .settings import BASELINE, Settings
from .sides import Function, Sides

logger = logging.getLogger(__name__)

_MATRIX_PRODUCT = "matrix product"
_PLAIN = (BASELINE, "ours", "torchvision")  # which have nothing to be compiled before


def run_benchmark(settings: Settings) -> Report:
    """Measure what the settings say; takes minutes.

    Raises:
        UserError: for a config, weights or an image that cannot be used.
    """
    networks = Networks(settings)
    height, width = networks.image.shape[1:]
    report = Report(settings, describe_machine(), int(height), int(width))
    logger.info("building the networks")
    _ = networks.detectron2  # and ours, whose weights it has
    for scope in settings.scopes:
        report.rows[scope] = _measure_scope(networks, scope, report)
        gc.collect()  # compiled models hold much memory
    if settings.parts:
        logger.info("parts")
        report.parts = time_parts(networks)
    if settings.forms:
        logger.info("forms")
        report.forms = time_forms(networks)
    return report


def _measure_scope(networks: Networks, scope: str, report: Report) -> list[Row]:
    settings = networks.settings
    rows = [Row(name) for name in settings.names(scope)]
    sides = Sides(networks, scope)
    image = networks.image[None]
    if scope == "backbone":
        image = networks.normalised(image)
    functions = _make_all(rows, sides, image)
    measured = [row for row in rows if row.name in functions]
    logger.info("%s: %d rounds", scope, settings.warmup + settings.repeats)
    calls = _calls(functions, image)
    if scope == "backbone":
        calls[_MATRIX_PRODUCT] = matrix_product()
    seconds = in_turn(calls, settings.repeats, settings.warmup)
    calls.clear()
    for row in measured:
        row.seconds = seconds[row.name]
    if scope == "backbone":
        _add_shares(measured, bottom_up(networks.detectron2), image, seconds, report)
    if scope == settings.scopes[-1]:
        _add_rates(measured, sides, functions, image)
        if settings.memory:
            _add_memory(measured, sides)
    return rows


def _make_all(rows: list[Row], sides: Sides, image: Tensor) -> dict[str, Function]:
    """Make the functions, time their first calls, and compare what they give."""
    functions: dict[str, Function] = {}
    expected = None
    for row in rows:
        logger.info("%s: making %s", sides.scope, row.title)
        made: list[Function] = []
        try:
            took = seconds_of(lambda row=row, made=made: made.append(sides.make(row.name)))
        except (UserError, RuntimeError) as error:  # not installed; no such network; no memory
            row.missing = one_line(error)
            logger.warning("%s: %s", row.title, error)
            continue
        function = functions[row.name] = made[0]
        row.make_s = None if row.name in _PLAIN else took
        found: list = []
        row.first_s = seconds_of(lambda f=function, found=found: found.extend(f(image)))
        expected = list(found) if expected is None else expected
        if sides.scope == "backbone":
            row.difference = compare_maps(expected, found)
        elif row.name != "torchvision":  # whose anchors and RoIAlign differ
            row.agreement = compare_detections(expected[0], found[0])
        found.clear()  # results may lie in memory that the next call needs
        turned = image.transpose(2, 3).contiguous()
        row.new_size_s = seconds_of(lambda f=function, turned=turned: f(turned))
    return functions


def _calls(functions: dict[str, Function], images: Tensor) -> dict[str, Callable[[], object]]:
    return {name: (lambda f=f: f(images)) for name, f in functions.items()}


def _add_shares(
    rows: list[Row],
    module: nn.Module,
    image: Tensor,
    seconds: dict[str, list[float]],
    report: Report,
) -> None:
    product = Row(_MATRIX_PRODUCT, seconds=seconds[_MATRIX_PRODUCT])
    report.peak_flops_per_s = MATRIX_PRODUCT_FLOPS / product.median
    report.multiply_adds = count_multiply_adds(module, image)
    for row in rows:
        row.flops_share = 2 * report.multiply_adds / row.median / report.peak_flops_per_s


def count_multiply_adds(module: nn.Module, image: Tensor) -> int:
    """Multiply-adds of the convolutions of a backbone for an input (N, 3, H, W)."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(module, image)
        analysis.unsupported_ops_warnings(False).tracer_warnings("none")
        return int(analysis.by_operator()["conv"])


def _add_rates(
    rows: list[Row], sides: Sides, functions: dict[str, Function], image: Tensor
) -> None:
    """Rates need fewer repeats than latencies: more images are in each."""
    settings = sides.networks.settings
    repeats = max(settings.repeats // 3, 1)
    batches = {b: [row.median for row in rows] for b in settings.batches if b == 1}
    for batch in settings.batches:
        if batch > 1:
            logger.info("%s: batches of %d", sides.scope, batch)
            images = image.expand(batch, -1, -1, -1).contiguous()
            seconds = in_turn(_calls(functions, images), repeats, min(settings.warmup, 1))
            batches[batch] = [Row(row.name, seconds=seconds[row.name]).median for row in rows]
        for row, median in zip(rows, batches[batch], strict=True):
            row.rates.append(Rate(batch, 1, batch / median))
    functions.clear()  # their memory is needed
    for streams in settings.streams:
        if streams > torch.get_num_threads():
            logger.warning("%d streams need as many torch threads: left out", streams)
        elif streams > 1:
            logger.info("%s: %d streams", sides.scope, streams)
            made = {row.name: sides.make(row.name, streams) for row in rows}
            seconds = streams_in_turn(made, image, streams, repeats)
            for row in rows:
                rate = streams * repeats / seconds[row.name][0]
                row.rates.append(Rate(1, streams, rate))


def _add_memory(rows: list[Row], sides: Sides) -> None:
    if not is_measurable():
        logger.warning("this system does not tell a process's memory: it is left out")
        return
    settings = sides.networks.settings
    with tempfile.TemporaryDirectory() as folder:
        quantized = None
        if sides.quantized is not None:
            quantized = Path(folder) / "int8"
            sides.quantized.save(quantized, {})
        for row in rows:
            logger.info("%s: memory of %s", sides.scope, row.title)
            try:
                row.memory = measure_memory(settings, sides.scope, row.name, quantized)
            except BrokenProcessPool:
                logger.warning("%s: the system ended the process that measured it", row.title)
            except RuntimeError as error:
                logger.warning("%s: its memory was not measured: %s", row.title, error)
