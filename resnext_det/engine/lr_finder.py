"""A learning rate for a config, from a short sweep over all rates (Smith 2017, Section 3.3).

"Cyclical Learning Rates for Training Neural Networks" raises the rate linearly while training; the
exponential sweep and the rate of the steepest descent are fastai's.
"""

import argparse
import copy
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from matplotlib.figure import Figure

from ..atomic import replacing
from ..config import load_config
from ..data.drawing import save_figure
from ..errors import UserError
from .launch import argument_parser
from .setup import prepare
from .trainer import Trainer

logger = logging.getLogger(__name__)

_FOLDER = "lr_finder"  # in OUTPUT_DIR, so that a run there stays as it is
_FEWEST = 10  # iterations
_DIVERGED = 4.0  # times the best smoothed loss: fastai's
_LEARNT = 0.95  # of the loss at the lowest rates; what falls less is noise


@dataclass(frozen=True)
class Sweep:
    """Training with a rising rate.

    Attributes:
        rates: learning rate of each iteration.
        losses: total loss of each, before its step; all finite.
        decay: of the moving average that smooths the losses, 0 to 1.
        stopped: why it ended early; "" if it did not.
    """

    rates: list[float]
    losses: list[float]
    decay: float
    stopped: str = ""

    @property
    def smoothed(self) -> list[float]:
        """The losses' exponential moving average, corrected for its start."""
        return [value for value, _ in _averages(self.losses, self.decay)]

    def suggestion(self) -> float | None:
        """The rate at which the smoothed loss fell fastest; None if it never fell.

        The slope is that against the rate's logarithm, over a tenth of the sweep, before the lowest
        loss; both ends are skipped. A moving average shows the loss of some iterations ago: the
        rate is that of then.
        """
        count = len(self.losses)
        reach = max(1, count // 20)
        smoothed = np.array(self.smoothed)
        first = max(reach, count // 10)
        if count < _FEWEST or smoothed[first:].min() > _LEARNT * np.mean(self.losses[:first]):
            return None
        last = min(first + int(smoothed[first:].argmin()), count - 1 - reach)
        if last < first:
            return None
        log_rates = np.log(self.rates)
        middle = np.arange(first, last + 1)
        slopes = (smoothed[middle + reach] - smoothed[middle - reach]) / (
            log_rates[middle + reach] - log_rates[middle - reach]
        )
        steepest = int(middle[slopes.argmin()])
        if slopes.min() >= 0:
            return None
        lag = list(_averages(range(count), self.decay))[steepest][1]
        then = np.interp(max(0.0, steepest - lag), np.arange(count), log_rates)
        return float(f"{math.exp(then):.2g}")


def _averages(values: Sequence[float], decay: float) -> Iterator[tuple[float, float]]:
    """The moving average at each value, and the mean age of what is in it, in iterations."""
    total = weight = aged = 0.0
    for value in values:
        aged = decay * (aged + weight)
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        yield total / weight, aged / weight


def decay_for(iterations: int) -> float:
    """A moving average over a tenth of the sweep; fastai's 0.98 from 500 iterations on."""
    return min(0.98, max(0.5, 1 - 10 / iterations))


class SweepTrainer(Trainer):
    """Trains with the config's data, weights and optimiser, and writes nothing."""

    def build_hooks(self) -> list[HookBase]:
        """None: no schedule, checkpoint, evaluation or metrics."""
        return []

    def sweep(self, rates: Sequence[float]) -> Sweep:
        """Train an iteration with each rate, until the loss diverges.

        Groups of parameters with a rate of their own (`SOLVER.BIAS_LR_FACTOR`) keep its ratio.

        Raises:
            UserError: if a signal came, or for want of memory.
        """
        sweep = Sweep([], [], decay_for(len(rates)))
        with EventStorage(0) as storage, self._signals.noted():
            for self.iter, rate in enumerate(rates):
                storage.iter = self.iter
                stopped = self._try(rate, sweep, storage)
                if self._signals.received:
                    raise UserError(f"stopped by {self._signals.received.name}: no rate was found")
                if stopped:
                    return Sweep(sweep.rates, sweep.losses, sweep.decay, stopped)
                if (self.iter + 1) % max(1, len(rates) // 10) == 0:
                    shown = (self.iter + 1, len(rates), rate, sweep.smoothed[-1])
                    logger.info("iter: %d/%d  lr: %.3g  smoothed loss: %.4g", *shown)
        return sweep

    def _try(self, rate: float, sweep: Sweep, storage: EventStorage) -> str:
        """Train an iteration and add it to `sweep`; return why it was the last, or ""."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["initial_lr"] / self.cfg.SOLVER.BASE_LR
        try:
            self.run_step()
        except FloatingPointError:
            return f"the loss is not finite at rate {rate:.3g}"
        except Exception as error:
            self._explain(error)
            return "stopped"  # by a signal, as what it was else is raised
        sweep.rates.append(rate)
        sweep.losses.append(storage.latest()["total_loss"][0])
        smoothed = sweep.smoothed
        if smoothed[-1] > _DIVERGED * min(smoothed):
            return f"the loss is {_DIVERGED:g} times its best at rate {rate:.3g}"
        return ""


def lr_finder_parser() -> argparse.ArgumentParser:
    """The command line of `tools/find_lr.py`: that of `train_net.py` and the sweep's."""
    parser = argument_parser()
    parser.epilog = None  # of examples that are train_net.py's
    own = parser.add_argument_group("the sweep")
    own.add_argument("--min-lr", type=float, default=1e-6, help="its first rate (default 1e-6)")
    own.add_argument("--max-lr", type=float, default=1.0, help="its last rate (default 1)")
    own.add_argument("--iterations", type=int, default=100, help="of training (default 100)")
    return parser


def find_lr(args: argparse.Namespace) -> float | None:
    """Suggest a learning rate; write `lr_finder.json` and `.png` into `OUTPUT_DIR/lr_finder`.

    Args:
        args: parsed by `lr_finder_parser()`.

    Returns:
        The suggested `SOLVER.BASE_LR`; None if there is none.

    Raises:
        UserError: for impossible rates or iterations, several processes, or as the training itself.
    """
    _check(args)
    args = copy.copy(args)
    folder = Path(load_config(args.config_file, args.opts).OUTPUT_DIR) / _FOLDER
    args.opts = [*args.opts, "OUTPUT_DIR", str(folder)]
    cfg = prepare(args)
    trainer = SweepTrainer(cfg)
    trainer.resume_or_load(resume=False)
    sweep = trainer.sweep(np.geomspace(args.min_lr, args.max_lr, args.iterations).tolist())
    rate = sweep.suggestion()
    report = asdict(sweep) | {
        "smoothed": sweep.smoothed,
        "images_per_batch": cfg.SOLVER.IMS_PER_BATCH,
        "config_lr": cfg.SOLVER.BASE_LR,
        "suggested_lr": rate,
    }
    with replacing(folder / "lr_finder.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot_sweep(sweep, cfg.SOLVER.BASE_LR, folder / "lr_finder.png")
    if sweep.stopped:
        logger.info("stopped after %d iterations: %s", len(sweep.losses), sweep.stopped)
    _say(rate, cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, folder)
    return rate


def _say(rate: float | None, own: float, batch: int, folder: Path) -> None:
    where = f"curve: {folder / 'lr_finder.png'}"
    if rate is None:
        logger.warning(
            "no rate can be suggested: the loss did not fall at any; try other --min-lr and "
            "--max-lr, or more --iterations; %s",
            where,
        )
        return
    logger.info(
        "the loss fell fastest at this rate, for %d images a step (the config says %g); %s\n"
        "SOLVER.BASE_LR %g",
        *(batch, own, where, rate),
    )


def _check(args: argparse.Namespace) -> None:
    if not args.config_file:
        raise UserError("--config-file is missing, e.g. configs/faster_rcnn_X50_32x4d.yaml")
    if comm.get_world_size() > 1:
        raise UserError("a rate is found in one process: leave out --num-gpus and --num-machines")
    if args.resume or args.eval_only:
        raise UserError("a rate is found by training from MODEL.WEIGHTS: no --resume, --eval-only")
    if not 0 < args.min_lr < args.max_lr < math.inf:
        raise UserError(
            f"--min-lr {args.min_lr:g} --max-lr {args.max_lr:g}: the first must be greater than 0 "
            "and less than the second"
        )
    if args.iterations < _FEWEST:
        raise UserError(f"--iterations {args.iterations}: a sweep takes at least {_FEWEST}")


def plot_sweep(sweep: Sweep, own: float, png: Path) -> None:
    """Plot the losses against the rate, with the suggestion and the config's own rate.

    Raises:
        UserError: if the picture cannot be written.
    """
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(sweep.rates, sweep.losses, s=10, color="0.7", label="loss")
    axes.plot(sweep.rates, sweep.smoothed, color="tab:blue", label="smoothed loss")
    if (rate := sweep.suggestion()) is not None:
        axes.axvline(rate, color="tab:red", label=f"suggested: {rate:g}")
    axes.axvline(own, color="0.3", linestyle="--", label=f"the config's: {own:g}")
    if sweep.losses:  # what diverges would flatten the rest
        axes.set_ylim(0, 1.5 * max(sweep.losses[: max(1, len(sweep.losses) // 2)]))
    else:
        axes.set_xlim(own / 10, own * 10)
    axes.set(xscale="log", xlabel="learning rate (SOLVER.BASE_LR)", ylabel="total training loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    save_figure(figure, png)
