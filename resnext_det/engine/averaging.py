"""What is evaluated: norm statistics that all processes share, and averaged weights."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn

from ..errors import UserError
from ..weights.files import read_file

logger = logging.getLogger(__name__)


def norm_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of `model` that training changes."""
    modules = [m for m in get_bn_modules(model) if m.track_running_stats]
    return [tensor for m in modules for tensor in (m.running_mean, m.running_var)]


class SameStatistics(HookBase):
    """Gives every process the running statistics of the first, which are the ones that are saved.

    Each process updates its own from its own images; without this an evaluation by several
    processes would be of models that differ, and none of them the checkpoint's.
    """

    def __init__(self, statistics: Sequence[Tensor]) -> None:
        """
        Args:
            statistics: of `norm_statistics`.
        """
        self._statistics = list(statistics)

    @torch.no_grad()
    def after_step(self) -> None:
        """Send them in one message."""
        if comm.get_world_size() == 1:
            return
        sent = torch.cat([tensor.flatten() for tensor in self._statistics])
        dist.broadcast(sent, 0)
        parts = sent.split([tensor.numel() for tensor in self._statistics])
        for tensor, part in zip(self._statistics, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


class AverageWeights(HookBase):
    """Follows the weights: average = d * average + (1 - d) * weights after every iteration.

    Early on d is (1 + t) / (10 + t) after t iterations, if that is less than the decay, so that the
    random start is soon forgotten (as TensorFlow's ExponentialMovingAverage does).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: without a wrapper for distributed training.
            decay: 0 to 1, e.g. 0.9998.
        """
        self._model = model
        self._decay = decay
        self.weights: dict[str, Tensor] = {}

    def before_train(self) -> None:
        """Start from the weights, unless an average was loaded."""
        if not self.weights:
            state = self._model.state_dict()
            self.weights = {name: value.detach().clone() for name, value in state.items()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Take in the iteration's weights."""
        done = self.trainer.iter + 1
        decay = min(self._decay, (1 + done) / (10 + done))
        for name, value in self._model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Put the average into the model, and the weights back at the end."""
        state = self._model.state_dict()
        kept = {name: value.clone() for name, value in state.items()}
        self._copy(self.weights, state)
        try:
            yield
        finally:
            self._copy(kept, state)

    @staticmethod
    @torch.no_grad()
    def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        for name, value in target.items():
            value.copy_(source[name])

    def state_dict(self) -> dict:
        """The average, for checkpoints."""
        return dict(self.weights)

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a checkpoint's average."""
        device = {name: value.device for name, value in self._model.state_dict().items()}
        self.weights = {name: v.to(device[name], copy=True) for name, v in state_dict.items()}


def load_average(model: nn.Module, checkpoint: Path) -> None:
    """Put the average that a run's checkpoint holds into `model`.

    Raises:
        UserError: if it holds none of this model.
    """
    try:
        average = read_file(checkpoint).content["trainer"]["hooks"][AverageWeights.__name__]
        model.load_state_dict(average)
    except (LookupError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{checkpoint} holds no averaged weights: set SOLVER.EMA_DECAY 0 to evaluate its own"
        ) from error
    logger.info("evaluating the averaged weights in %s (SOLVER.EMA_DECAY)", checkpoint)
