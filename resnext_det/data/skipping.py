"""Training on data of which some images are broken: a few are skipped, aloud, and no more."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch.utils.data import Dataset

from ..errors import UserError

logger = logging.getLogger(__name__)

SKIPPED = "skipped_images.jsonl"  # in a run's folder
_SHOWN = 10


class SkippedImages:
    """The images that a run has left out, on disk, so that all of its data workers share one count.

    Each line of the file is {"file_name": ..., "reason": ...}.
    """

    def __init__(self, file: Path, limit: int, finder: str = "") -> None:
        """
        Args:
            file: made with the first image; what is in it counts.
            limit: how many different images may be left out; 0 for none.
            finder: the command that finds all of them before a run, for messages.
        """
        self._file = file
        self._limit = limit
        self._advice = f"; {finder} finds all" if finder else ""

    def add(self, file_name: str, reason: str) -> None:
        """Note an image, and say so once.

        Raises:
            UserError: with a list, if it is one too many.
        """
        known = self.read()
        if file_name not in known:
            line = json.dumps({"file_name": file_name, "reason": reason}) + "\n"
            # one write in append mode: lines of several processes do not mix
            handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
            known[file_name] = reason
            if self._limit:
                logger.warning("left out %s: %s", file_name, reason)
        if len(known) > self._limit:
            raise UserError(self._explain(known, file_name))

    def read(self) -> dict[str, str]:
        """File names and reasons so far."""
        if not self._file.is_file():
            return {}
        lines = self._file.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.endswith("}")]
        return {record["file_name"]: record["reason"] for record in records}

    def _explain(self, known: dict[str, str], file_name: str) -> str:
        if self._limit == 0:
            return f"{known[file_name]} (DATALOADER.MAX_SKIPPED_IMAGES 0: none is left out)"
        listed = "; ".join(list(known.values())[:_SHOWN])
        more = f"; ... (all in {self._file})" if len(known) > _SHOWN else ""
        return (
            f"{len(known)} images cannot be used, more than DATALOADER.MAX_SKIPPED_IMAGES "
            f"{self._limit}{self._advice}: {listed}{more}"
        )


class SkippingDataset(Dataset):
    """Mapped records of which those that cannot be mapped give way to the next one."""

    def __init__(
        self, records: Sequence[dict], mapper: Callable[[dict], dict], skipped: SkippedImages
    ) -> None:
        """
        Args:
            records: dataset dicts.
            mapper: raises a UserError for one that cannot be used.
            skipped: counts them.
        """
        self._records, self._mapper, self._skipped = records, mapper, skipped

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        """The record at `index`, mapped, or the next that can be.

        Raises:
            UserError: if too many cannot.
        """
        for step in range(len(self)):
            record = self._records[(int(index) + step) % len(self)]
            try:
                return self._mapper(record)
            except UserError as error:
                self._skipped.add(str(record["file_name"]), str(error))
                last = error
        raise UserError(f"no image of the training set can be used, e.g. {last}")
