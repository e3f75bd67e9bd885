"""An exponential moving average of the weights (Polyak averaging), which is what is evaluated."""

import contextlib
from collections.abc import Iterator

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn


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
