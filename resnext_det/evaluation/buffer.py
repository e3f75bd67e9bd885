"""Collecting detections image by image."""

from dataclasses import replace

import numpy as np

from .detections import Detections, no_detections

_KINDS = {
    "images": np.int64,
    "categories": np.int64,
    "boxes": np.float64,
    "scores": np.float64,
    "mask_sizes": np.int32,
    "keypoints": np.float64,
}


class DetectionBuffer:
    """Detections in a few large blocks of memory that grow.

    Thousands of small arrays, kept between the large masks that come and go, would cut the heap to
    pieces into which no next masks fit: 10 MB an image were lost.
    """

    def __init__(self) -> None:
        self._columns = {name: bytearray() for name in _KINDS}
        self._widths: dict[str, tuple[int, ...]] = {}  # of a row, but for its length
        self._counts = bytearray()  # of all masks, one after the other
        self._lengths = bytearray()  # of each, int32
        self._has_masks = False

    def add(self, part: Detections) -> None:
        """Copy some detections in; all have masks and keypoints, or none."""
        if not len(part):
            return
        for name, kind in _KINDS.items():
            if (column := getattr(part, name)) is not None:
                self._columns[name] += np.ascontiguousarray(column, dtype=kind).data.cast("B")
                self._widths[name] = column.shape[1:]
        if part.masks is not None:
            self._has_masks = True
            self._counts += b"".join(part.masks)
            self._lengths += np.array([len(mask) for mask in part.masks], dtype=np.int32).tobytes()

    def extend(self, other: "DetectionBuffer", first: int) -> None:
        """Copy in what another one has, whose image 0 is image `first` here."""
        part = other.detections()
        self.add(replace(part, images=part.images + first))

    def detections(self) -> Detections:
        """All that was added; nothing more may be added then."""
        columns = {
            name: np.frombuffer(self._columns[name], kind).reshape(-1, *self._widths[name])
            for name, kind in _KINDS.items()
            if name in self._widths
        }
        if not columns:
            return no_detections()
        masks = None
        if self._has_masks:
            ends = np.cumsum(np.frombuffer(self._lengths, np.int32)).tolist()
            counts = bytes(self._counts)
            masks = tuple(counts[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True))
        return Detections(**columns, masks=masks)
