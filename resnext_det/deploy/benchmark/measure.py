"""Timing in turn: a drift of the machine hits all sides alike."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from .sides import Function

_PEAK_SIDE = 2048


def seconds_of(function: Callable[[], object]) -> float:
    """Call it once."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(
    functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 0
) -> dict[str, list[float]]:
    """Call all functions one after the other, and all over again.

    Args:
        functions: by name.
        repeats: timed rounds.
        warmup: untimed rounds before them.

    Returns:
        By name the seconds of each timed call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            took = seconds_of(function)
            if turn >= warmup:
                seconds[name].append(took)
    return seconds


def streams_in_turn(
    sides: Mapping[str, Function], images: Tensor, streams: int, repeats: int
) -> dict[str, list[float]]:
    """Time threads that run images at the same time, each on its share of torch's threads.

    Args:
        sides: by name, made for so many streams.
        images: (N, 3, H, W), what one thread runs at a time.
        streams: number of threads.
        repeats: calls of each thread in one timing; one more before it is not timed.

    Returns:
        By name one timing, in seconds for `streams * repeats` calls.
    """
    seconds = {}
    with threads_shared(streams):
        for name, side in sides.items():
            with ThreadPoolExecutor(streams) as pool:

                def work(count: int, side: Function = side, pool: ThreadPoolExecutor = pool):
                    calls = [pool.submit(_repeat, side, images, count) for _ in range(streams)]
                    for call in calls:
                        call.result()

                work(1)
                seconds[name] = [seconds_of(lambda work=work: work(repeats))]
    return seconds


def _repeat(side: Function, images: Tensor, count: int) -> None:
    for _ in range(count):
        side(images)


@contextmanager
def threads_shared(streams: int) -> Iterator[None]:
    """Torch's threads, divided by the number of streams, for a while."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads // streams, 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def matrix_product() -> Callable[[], object]:
    """A product of two float32 matrices of `_PEAK_SIDE` squared, to be timed."""
    generator = torch.Generator().manual_seed(0)
    one, other, out = (torch.randn(_PEAK_SIDE, _PEAK_SIDE, generator=generator) for _ in range(3))
    return lambda: torch.mm(one, other, out=out)


MATRIX_PRODUCT_FLOPS = 2 * _PEAK_SIDE**3
