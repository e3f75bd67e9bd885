"""Which images an iteration trains on: a function of the run's seed and the iteration alone.

Detectron2 gives each process its own stream, shuffled by a seed, and batches images of one
orientation as they come; where a stream stands is lost when a run stops. Here one stream of whole
batches is cut into the processes' parts, so that it can begin at any iteration, and a batch is the
same however many processes and accumulation steps share it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from ..randomness import IMAGE, seed_everything, seed_for

Place = tuple[int, int]  # position in the stream, index in the data set
SeededIndex = tuple[int, int]  # seed of the image's augmentation, index in the data set


class BatchStream(Sampler[list[SeededIndex]]):
    """Endless batches of this process, for `DataLoader(batch_sampler=...)`.

    Attributes:
        seed: of the shuffling.
        start: the iteration to begin at; both are read when iteration begins.
    """

    def __init__(
        self,
        sampler: Callable[[int], Iterator[int]],
        *,
        images_per_batch: int,
        accumulate: int = 1,
        groups: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            sampler: gives, for a seed, the endless order of the data set's indices.
            images_per_batch: of one iteration, over all processes.
            accumulate: into how many batches a process's part of an iteration is cut.
            groups: of each index, e.g. 0 for upright and 1 for wide images; the images of one
                iteration are of one group. None mixes all.
            seed: of the shuffling.
        """
        self._sampler = sampler
        self._images = images_per_batch
        self._accumulate = accumulate
        self._groups = groups
        self.seed = seed
        self.start = 0

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        processes, rank = comm.get_world_size(), comm.get_rank()
        share = self._images // processes
        size = share // self._accumulate
        for batch in itertools.islice(self.iterations(), self.start, None):
            own = batch[rank * share : (rank + 1) * share]
            for first in range(0, share, size):
                part = own[first : first + size]
                yield [(seed_for(self.seed, IMAGE, position), index) for position, index in part]

    def iterations(self) -> Iterator[list[Place]]:
        """The images of iteration 0, 1, 2, ... over all processes."""
        waiting: dict[int, list[Place]] = {}
        for position, index in enumerate(self._sampler(self.seed)):
            group = waiting.setdefault(self._groups[index] if self._groups else 0, [])
            group.append((position, index))
            if len(group) == self._images:
                yield list(group)
                group.clear()


class SeededDataset(Dataset):
    """Another data set, whose augmentation draws from the seed that comes with each index."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place: SeededIndex) -> dict:
        seed, index = place
        seed_everything(seed)
        return self._dataset[index]


def orientations(records: Sequence[dict]) -> list[int]:
    """1 for each image that is wider than high, 0 for the others."""
    return [int(record["width"] > record["height"]) for record in records]
