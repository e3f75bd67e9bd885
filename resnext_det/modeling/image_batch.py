"""A batch of images with one class each, as classifiers take them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ImageBatch:
    """Images of one size with their classes; as a sequence, a dict for each image.

    One tensor for all images: handing each over by itself costs a data worker more than reading a
    small one. No `Sequence` by name: torch's loader would take it apart to pin its memory.

    Attributes:
        images: (N, H, W, 3) RGB, uint8, 0..255.
        labels: (N,) int64.
        names: of the images' files, for messages.
        colour: (N, 3, 4) float32, what is done to the colours of each image, x' = A x + b of RGB
            values in 0..255 with A the first three columns and b the last; None for nothing.
    """

    images: Tensor
    labels: Tensor
    names: Sequence[str]
    colour: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        """Image `index` in Detectron2's form: `image` (3, H, W) RGB, `file_name`, `label`."""
        item = {
            "image": self.images[index].permute(2, 0, 1),
            "file_name": self.names[index],
            "label": int(self.labels[index]),
        }
        return item if self.colour is None else {**item, "colour": self.colour[index]}

    def __iter__(self) -> Iterator[dict]:
        return (self[index] for index in range(len(self)))

    def pin_memory(self) -> "ImageBatch":
        """The same in memory from which copies to a GPU are faster; for torch's loader."""
        colour = None if self.colour is None else self.colour.pin_memory()
        return ImageBatch(self.images.pin_memory(), self.labels.pin_memory(), self.names, colour)

    @classmethod
    def of(cls, items: Sequence[Mapping]) -> "ImageBatch":
        """Undo `__getitem__`; `label` and `file_name` may be absent where they are of no use."""
        colours = [item["colour"] for item in items if "colour" in item]
        return cls(
            torch.stack([item["image"].permute(1, 2, 0) for item in items]),
            torch.tensor([item.get("label", 0) for item in items]),
            [str(item.get("file_name", "")) for item in items],
            torch.stack(colours) if colours else None,
        )
