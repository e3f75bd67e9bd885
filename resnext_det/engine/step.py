"""One training iteration: accumulated, in mixed precision, reproducible, checked."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..randomness import ITERATION, seed_everything


class NonFiniteLossError(FloatingPointError):
    """A loss is NaN or infinite.

    Attributes:
        losses: of this process, by name.
        everywhere: whether every process raises it, and not this one alone.
    """

    def __init__(self, losses: dict[str, float], *, everywhere: bool) -> None:
        super().__init__(f"Loss became infinite or NaN: {losses}")
        self.losses = losses
        self.everywhere = everywhere


def is_of_predicted_boxes(error: BaseException) -> bool:
    """Whether Detectron2 has met predicted boxes that are not finite: an RPN's, or a cascade's."""
    return isinstance(error, FloatingPointError) or "infinite or NaN" in str(error)


class TrainingStep(SimpleTrainer):
    """Detectron2's `SimpleTrainer` with gradient accumulation and mixed precision on any device.

    Before each forward pass the random numbers are seeded by the run's seed, the iteration and the
    process. The optimiser does not see the gradients of a loss that is not finite.

    Attributes:
        batch: the inputs of the last forward pass, or of the one whose loss is not finite, for
            reports.
        part: which of the accumulated passes of the iteration that was, from 0.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        precision: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            model: gives a dict of losses in training, on its own device.
            data_loader: gives the inputs; one iteration takes `accumulate` of them.
            optimizer: of the model's parameters.
            accumulate: forward and backward passes per iteration; their gradients are averaged.
            precision: of mixed precision, float16 (GPUs only; with loss scaling) or bfloat16; None
                for float32.
            seed: the run's.
        """
        super().__init__(model, data_loader, optimizer)
        self.accumulate = accumulate
        self.precision = precision
        self.seed = seed
        self.batch: list[dict] = []
        self.part = 0
        self._device = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self._device, enabled=precision == torch.float16)

    def run_step(self) -> None:
        """Train one iteration.

        Raises:
            NonFiniteLossError: on every process, if the loss of one is not finite; on one, if the
                boxes that it predicts are not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts: list[tuple[list[dict], dict[str, Tensor]]] = []
        data_time = 0.0
        for part in range(self.accumulate):
            self.part = part
            start = time.perf_counter()
            self.batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            losses = {k: v.detach() for k, v in self._forward_backward(part).items()}
            parts.append((self.batch, losses))
        self.after_backward()
        self._check_and_record(parts, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _forward_backward(self, part: int) -> dict[str, Tensor]:
        purpose = (self.iter, part, comm.get_rank())
        seed_everything(self.seed, ITERATION, *purpose)
        last = part == self.accumulate - 1
        with self._without_synchronising() if not last else contextlib.nullcontext():
            with torch.autocast(
                self._device, dtype=self.precision, enabled=self.precision is not None
            ):
                losses = self._losses()
                total = sum(losses.values()) / self.accumulate
            self.grad_scaler.scale(total).backward()
        return losses

    def _losses(self) -> dict[str, Tensor]:
        try:
            return self.model(self.batch)
        except (FloatingPointError, AssertionError) as error:
            if not is_of_predicted_boxes(error):
                raise
            nan = {"loss_of_predicted_boxes": math.nan}
            raise NonFiniteLossError(nan, everywhere=comm.get_world_size() == 1) from error

    @contextlib.contextmanager
    def _without_synchronising(self) -> Iterator[None]:
        if isinstance(self.model, DistributedDataParallel):
            with self.model.no_sync():
                yield
        else:
            yield

    def _check_and_record(
        self, parts: Sequence[tuple[list[dict], Mapping[str, Tensor]]], data_time: float
    ) -> None:
        """Record the processes' mean losses and their longest wait for data."""
        names = parts[0][1]
        own = {n: sum(losses[n] for _, losses in parts).item() / len(parts) for n in names}
        everyones = comm.all_gather((own, data_time))
        losses = [each for each, _ in everyones]
        if not np.isfinite([v for each in losses for v in each.values()]).all():
            raise NonFiniteLossError(self._point_at_first(parts), everywhere=True)
        if comm.is_main_process():
            storage = get_event_storage()
            storage.put_scalar("data_time", max(seconds for _, seconds in everyones))
            mean = {name: float(np.mean([each[name] for each in losses])) for name in own}
            storage.put_scalar("total_loss", sum(mean.values()))
            if len(mean) > 1:
                storage.put_scalars(**mean)

    def _point_at_first(
        self, parts: Sequence[tuple[list[dict], Mapping[str, Tensor]]]
    ) -> dict[str, float]:
        """Let `batch` and `part` be the first whose loss is not finite; return its losses."""
        found = []
        for batch, losses in parts:
            found.append({name: value.item() for name, value in losses.items()})
            if not np.isfinite(list(found[-1].values())).all():
                self.batch, self.part = batch, len(found) - 1
                return found[-1]
        return found[-1]  # another process's is not

    def state_dict(self) -> dict:
        """Optimiser, seed and, in float16, the loss's scale."""
        return {
            **super().state_dict(),
            "seed": self.seed,
            "grad_scaler": self.grad_scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """See `state_dict`; one without seed or scale, as Detectron2 writes, is taken as well."""
        super().load_state_dict(state_dict)
        self.seed = state_dict.get("seed", self.seed)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
