"""Reading and writing videos with OpenCV."""

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..atomic import replacing
from ..errors import UserError

if TYPE_CHECKING:
    import cv2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Video:
    """A video that is open for reading.

    Attributes:
        file: its path.
        width, height: pixels.
        fps: frames a second.
        num_frames: as its header says; some lack it, and then it is 0.
    """

    file: Path
    width: int
    height: int
    fps: float
    num_frames: int
    _capture: "cv2.VideoCapture"
    _first: np.ndarray

    def frames(self) -> Iterator[np.ndarray]:
        """Yield frames, (H, W, 3) BGR uint8; a video that is cut off ends early, with a warning."""
        count, there, frame = 0, True, self._first
        while there:
            count += 1
            yield frame
            there, frame = self._capture.read()
        if count < self.num_frames:
            logger.warning("%s: %d of %d frames can be read", self.file, count, self.num_frames)


@contextlib.contextmanager
def open_video(file: Path) -> Iterator[Video]:
    """Open a video for reading.

    Raises:
        UserError: if OpenCV is absent, the file cannot be read as a video, or its frames are less
            than two pixels high or wide, which no encoder takes.
    """
    cv2 = _opencv()
    capture = cv2.VideoCapture(str(file))
    try:
        there, frame = capture.read() if capture.isOpened() else (False, None)
        if not there:
            raise UserError(f"cannot read video {file}: it is damaged or of an unknown format")
        height, width = frame.shape[:2]
        if min(height, width) < 2:
            raise UserError(f"cannot use video {file}: {width} x {height} pixels are too few")
        fps = capture.get(cv2.CAP_PROP_FPS)
        if not (math.isfinite(fps) and fps > 0):
            raise UserError(f"cannot read video {file}: it does not say its frame rate")
        count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        yield Video(file, width, height, fps, count, capture, frame)
    finally:
        capture.release()


@contextlib.contextmanager
def writing_video(file: Path, width: int, height: int, fps: float) -> Iterator["cv2.VideoWriter"]:
    """Write an MP4 (MPEG-4 video, no sound), whole or not at all.

    The encoder works on pairs of pixels: of an odd width or height the last one is lost.

    Yields:
        A writer, whose `write` takes frames, (height, width, 3) BGR uint8.

    Raises:
        UserError: if it cannot be written.
    """
    cv2 = _opencv()
    with replacing(file) as temporary:
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(temporary), codec, fps, (width, height))
        try:
            if not writer.isOpened():
                raise UserError(f"{file} cannot be written: OpenCV has no encoder for it here")
            yield writer
        finally:
            writer.release()
        if not cv2.VideoCapture(str(temporary)).read()[0]:  # OpenCV does not tell
            raise UserError(f"{file} cannot be written: is the disk full?")


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise UserError("videos need OpenCV: pip install 'resnext_det[video]'") from error
    return cv2
