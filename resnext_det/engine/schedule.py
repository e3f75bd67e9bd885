"""Scaling a schedule to another batch: the linear rule (Goyal et al. 2017, Section 2.1).

A batch k times smaller takes a learning rate k times lower and k times as many iterations, so that
as many images are seen at the same rate per image.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from detectron2.config import CfgNode
from tabulate import tabulate

from ..config import load_config
from ..errors import UserError

logger = logging.getLogger(__name__)

_BATCH = "SOLVER.IMS_PER_BATCH"
_RATE = "SOLVER.BASE_LR"
# counted in iterations; 0 means never, or none
_COUNTS = (
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
)
_TOLERATED = 1.5  # times the reference's rate per image


@dataclass(frozen=True)
class Reference:
    """What a config file says before the command line changes it.

    Attributes:
        batch: images per iteration, over all processes.
        rate: the learning rate for it.
        counts: what is counted in iterations, by key.
    """

    batch: int
    rate: float
    counts: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, config_file: str) -> "Reference":
        """Read a config file's own batch and learning rate.

        Raises:
            UserError: as `load_config`.
        """
        cfg = load_config(config_file)
        counts = {key: _node_of(cfg, key)[key.split(".")[1]] for key in _COUNTS}
        return cls(cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, counts)

    def rate_for(self, batch: int) -> float:
        """The learning rate for another batch."""
        return self.rate * batch / self.batch

    def excess(self, cfg: CfgNode) -> float:
        """How many times the config's rate per image is the reference's."""
        return cfg.SOLVER.BASE_LR / self.rate_for(cfg.SOLVER.IMS_PER_BATCH)


def scale_schedule(
    cfg: CfgNode, reference: Reference, overrides: Sequence[str], processes: int
) -> str:
    """Scale learning rate, warm-up, steps, iterations and periods to the batch, in place.

    The batch is the command line's `SOLVER.IMS_PER_BATCH`; without one it is the config's, or,
    where that says for how many processes it is (`SOLVER.REFERENCE_WORLD_SIZE`), as many images a
    process. Whatever the command line says itself is left as it is.

    Args:
        cfg: the config with the command line's overrides.
        reference: what the config file says.
        overrides: the command line's KEY VALUE words.
        processes: of this run.

    Returns:
        A table of the values before and after.

    Raises:
        UserError: if the batch is not positive, or too small for the processes.
    """
    said = set(overrides[::2])
    if _BATCH not in said and (at_reference := cfg.SOLVER.REFERENCE_WORLD_SIZE):
        cfg.SOLVER.IMS_PER_BATCH = reference.batch * processes // at_reference
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0  # else Detectron2 would scale once more
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch <= 0:
        raise UserError(f"{_BATCH} {batch} must be greater than 0")
    times = reference.batch / batch
    rows = [[_BATCH, reference.batch, batch, "the command line" if _BATCH in said else ""]]
    own = {_RATE: reference.rate, **reference.counts}
    rows.append(_scale(cfg, _RATE, said, own, lambda rate: float(f"{rate / times:.12g}")))
    for key in _COUNTS:
        rows.append(_scale(cfg, key, said, own, lambda count: _scale_count(count, times)))
    return tabulate(rows, ["", "config", "this run", "set by"], disable_numparse=True)


def _node_of(cfg: CfgNode, key: str) -> CfgNode:
    return cfg[key.split(".")[0]]


def _scale(
    cfg: CfgNode, key: str, said: set[str], own: Mapping[str, object], rule: Callable
) -> list:
    node, leaf = _node_of(cfg, key), key.split(".")[1]
    before = node[leaf]
    if key in said:
        return [key, _shown(own.get(key, "")), _shown(before), "the command line"]
    node[leaf] = after = rule(before)
    return [key, _shown(before), _shown(after), ""]


def _scale_count(count: int | tuple[int, ...], times: float) -> int | tuple[int, ...]:
    if isinstance(count, int):
        return max(1, round(count * times)) if count > 0 else count
    return type(count)(_scale_count(each, times) for each in count)


def _shown(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def warn_of_rate(cfg: CfgNode, reference: Reference) -> None:
    """Warn if the learning rate per image is off the config's by more than 1.5 times."""
    excess = reference.excess(cfg)
    if 1 / _TOLERATED <= excess <= _TOLERATED:
        return
    times = f"{excess:.3g} times" if excess > 1 else f"1/{1 / excess:.3g} of"
    batch = cfg.SOLVER.IMS_PER_BATCH
    logger.warning(
        "SOLVER.BASE_LR %g for %d images is %s the config's rate per image (%g for %d): %g would "
        "be the same rate, and --auto-scale sets it with the whole schedule",
        *(cfg.SOLVER.BASE_LR, batch, times, reference.rate, reference.batch),
        reference.rate_for(batch),
    )
