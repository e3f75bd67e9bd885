"""What a run's evaluations decide: the best checkpoint, and when to stop early."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from ..atomic import replacing
from ..errors import UserError
from .stopping import TrainingStopped

logger = logging.getLogger(__name__)

# The metric that decides, of the first task that a model is evaluated for.
_DECIDING = (
    ("segm", "AP"),
    ("keypoints", "AP"),
    ("bbox", "AP"),
    ("box_proposals", "AR@1000"),
    ("classification", "accuracy"),
)


def deciding_metric(results: Mapping) -> tuple[str, float]:
    """Name and value, in percent, of the metric that says which checkpoint is better.

    Args:
        results: {task: {metric: percent}}, or {data set: that}, of which the first data set counts.

    Returns:
        e.g. ("segm/AP", 34.2); ("", NaN) where nothing was evaluated.
    """
    first = next(iter(results.values()), {})
    tasks = first if any(isinstance(value, Mapping) for value in first.values()) else results
    for task, metric in _DECIDING:
        if metric in tasks.get(task, {}):
            return f"{task}/{metric}", float(tasks[task][metric])
    return "", math.nan


class EvaluationLog:
    """A run's evaluations on disk, `evaluations.json`, so that they survive an interruption.

    The file holds a list of {"iteration": iterations done, "metric": name, "value": percent or
    null}.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._entries: list[dict] = []

    def begin(self, iteration: int) -> None:
        """Keep what was evaluated up to `iteration`, and nothing at 0.

        Raises:
            UserError: if the file is damaged.
        """
        self._entries = []
        if iteration and self._file.is_file():
            try:
                entries = json.loads(self._file.read_text(encoding="utf-8"))
                self._entries = [e for e in entries if e["iteration"] <= iteration]
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise UserError(f"{self._file} is damaged ({error}): remove it") from error
        self._file.unlink(missing_ok=True)
        if self._entries:
            self._write()

    def is_best(self, iteration: int, results: Mapping) -> bool:
        """Whether an evaluation is better than those of other iterations; NaN never is."""
        value = deciding_metric(results)[1]
        others = [e["value"] for e in self._entries if e["iteration"] != iteration]
        return not math.isnan(value) and all(v is None or value > v for v in others)

    def add(self, iteration: int, results: Mapping) -> None:
        """Note an evaluation, in place of an earlier one of this iteration."""
        name, value = deciding_metric(results)
        kept = None if math.isnan(value) else value
        self._entries = [e for e in self._entries if e["iteration"] != iteration]
        self._entries.append({"iteration": iteration, "metric": name, "value": kept})
        self._write()

    def has(self, iteration: int) -> bool:
        """Whether the model was evaluated after so many iterations."""
        return any(entry["iteration"] == iteration for entry in self._entries)

    def best(self) -> dict | None:
        """The first entry of the highest value; None if there is none but NaN."""
        valid = [entry for entry in self._entries if entry["value"] is not None]
        return max(valid, key=lambda entry: entry["value"], default=None)

    def since_best(self) -> int:
        """How many evaluations came after the best one."""
        best = self.best()
        return len(self._entries) - (self._entries.index(best) + 1 if best else 0)

    def _write(self) -> None:
        with replacing(self._file) as temporary:
            temporary.write_text(json.dumps(self._entries, indent=1) + "\n", encoding="utf-8")


class Evaluation(HookBase):
    """Evaluates every so many iterations and at the end, keeps the best, and stops early.

    An evaluation that an interruption cut off is made up for when the run goes on.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], Mapping],
        log: EvaluationLog,
        keep_best: Callable[[int, str, float], None],
        *,
        patience: int = 0,
    ) -> None:
        """
        Args:
            period: in iterations; 0 evaluates at the end only.
            evaluate: gives the results on the main process.
            log: of the run.
            keep_best: called on the main process after the best evaluation so far, with the
                iterations done, the metric's name and its value.
            patience: evaluations without a better one after which training stops; 0 for never.
        """
        self._period = period
        self._evaluate = evaluate
        self._log = log
        self._keep_best = keep_best
        self._patience = patience

    def before_train(self) -> None:
        """Make up for an evaluation that is due."""
        done = self.trainer.start_iter
        if comm.is_main_process():
            self._log.begin(done)
        lacking = self._is_due(done) and not comm.all_gather(self._log.has(done))[0]
        if done and lacking:
            logger.info("evaluating iteration %d first, which was cut off", done)
            self._run(done)
        elif done < self.trainer.max_iter and self._has_waited_enough():
            raise UserError(
                f"the run stopped early already, after iteration {done} "
                f"(SOLVER.EARLY_STOP_PATIENCE {self._patience}): raise that, or use --eval-only"
            )

    def after_step(self) -> None:
        """Evaluate if it is time; the last iteration's evaluation follows the training."""
        done = self.trainer.iter + 1
        if self._is_due(done):
            self._run(done)

    def after_train(self) -> None:
        """Evaluate what was trained to the end."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._run(self.trainer.max_iter)

    def _has_waited_enough(self) -> bool:
        return 0 < self._patience <= comm.all_gather(self._log.since_best())[0]

    def _is_due(self, done: int) -> bool:
        return self._period > 0 and done % self._period == 0 and done < self.trainer.max_iter

    def _run(self, done: int) -> None:
        results = self._evaluate()
        waited = 0
        if results and comm.is_main_process():
            metrics = {k: float(v) for k, v in flatten_results_dict(results).items()}
            storage = self.trainer.storage
            now = min(storage.iter, self.trainer.max_iter)  # beyond it if nothing was left to train
            storage.put_scalars(**metrics, smoothing_hint=False, cur_iter=now)
            # the checkpoint before the note of it, lest a crash between the two lose it
            if self._log.is_best(done, results):
                self._keep_best(done, *deciding_metric(results))
            self._log.add(done, results)
            waited = self._log.since_best()
        waited = comm.all_gather(waited)[0]  # which also lets the processes go on together
        if 0 < self._patience <= waited and done < self.trainer.max_iter:
            raise TrainingStopped(
                f"stopped early: {waited} evaluations without a better one "
                f"(SOLVER.EARLY_STOP_PATIENCE {self._patience})",
                resumable=False,
            )
