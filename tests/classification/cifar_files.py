"""CIFAR's files in their authors' formats, with random images, for tests."""

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CIFAR100 = tuple(f"fine_{number}" for number in range(100))


class _Python2(pickle._Pickler):
    """Writes bytes and texts as Python 2 wrote its strings, and NumPy's names as they were then."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value: bytes | str) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    def save_global(self, obj: object, name: str | None = None) -> None:
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[bytes] = dispatch[str] = save_string
    dispatch[type] = dispatch[type(lambda: None)] = dispatch[type(len)] = save_global


def python2(content: object) -> bytes:
    """A pickle as Python 2 wrote CIFAR's."""
    file = io.BytesIO()
    _Python2(file, 2).dump(content)
    return file.getvalue()


def python3(content: object) -> bytes:
    """A pickle of the same by Python 3, whose keys are bytes."""
    return pickle.dumps({k.encode(): v for k, v in content.items()}, protocol=2)


@dataclass
class Batch:
    """`rows` (N, 3072) uint8, and `labels` (N,), and for CIFAR-100 `coarse` ones."""

    rows: np.ndarray
    labels: np.ndarray


def make_batch(seed: int, count: int, classes: int) -> Batch:
    """Random images and labels, every label at least once."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    return Batch(rng.integers(0, 256, (count, 3072), dtype=np.uint8), labels)


def write_binary(file: Path, batch: Batch, classes: int) -> None:
    """The binary form: CIFAR-100 has a coarse label before the fine one."""
    columns = [batch.labels[:, None].astype(np.uint8), batch.rows]
    if classes == 100:
        columns.insert(0, (batch.labels[:, None] // 5).astype(np.uint8))
    np.concatenate(columns, axis=1).tofile(file)


def write_pickle(
    file: Path, batch: Batch, classes: int, dump: Callable[[dict], bytes] = python2
) -> None:
    """The Python form."""
    content = {"data": batch.rows, "batch_label": "a batch", "filenames": ["a.png", "b.png"]}
    labels = [int(label) for label in batch.labels]
    if classes == 100:
        content |= {"fine_labels": labels, "coarse_labels": [label // 5 for label in labels]}
    else:
        content["labels"] = labels
    file.write_bytes(dump(content))


def write_names(folder: Path, classes: int, dump: Callable[[dict], bytes] | None = None) -> None:
    """The file with the classes' names, binary for None."""
    names = list(CIFAR100 if classes == 100 else CIFAR10)
    if dump is None:
        file = "fine_label_names.txt" if classes == 100 else "batches.meta.txt"
        (folder / file).write_text("\n".join(names) + "\n\n")
        return
    content = {"fine_label_names" if classes == 100 else "label_names": names, "num_vis": 3072}
    (folder / ("meta" if classes == 100 else "batches.meta")).write_bytes(dump(content))
