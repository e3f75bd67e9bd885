"""The work of a demo: images and videos in, pictures and files out."""

import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from detectron2.structures import Instances
from PIL import Image
from tqdm import tqdm

from ..data.drawing import bones_of
from ..data.sheets import save_picture
from ..errors import UserError
from ..images import decode_image, read_image
from .collection import Collection, to_records, write_json
from .pictures import draw_detections
from .predictor import Predictor
from .sources import Source
from .video import open_video, writing_video

logger = logging.getLogger(__name__)

_BATCHES = 4  # read together, where images of one size are looked for


@dataclass(frozen=True)
class Options:
    """What a demo does.

    Attributes:
        threshold: lowest score that is drawn and written, 0..1.
        batch: images at once.
        limit: at most so many images and videos, and so many frames of each video; None for all.
        json: write predictions.json.
        csv: write predictions.csv.
        coco: write coco_instances_results.json and images.json.
        optimize: see `Predictor`.

    Raises:
        UserError: for a value that is not as above.
    """

    threshold: float = 0.5
    batch: int = 1
    limit: int | None = None
    json: bool = False
    csv: bool = False
    coco: bool = False
    optimize: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"--threshold {self.threshold:g}: a score lies from 0 to 1")
        if self.batch < 1:
            raise UserError(f"--batch {self.batch}: at least 1 image is needed")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit {self.limit}: at least 1 image is needed")


@dataclass
class Summary:
    """What a demo did.

    Attributes:
        images: images that were looked at.
        videos: likewise.
        detections: in all of them.
        failed: inputs that were left out: they could not be read, or nothing written of them.
        stopped: whether it was ended before all inputs were looked at.
        written: the files that hold all images' detections.
    """

    images: int = 0
    videos: int = 0
    detections: int = 0
    failed: list[Path] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    stopped: bool = False

    def __str__(self) -> str:
        seen = [_count(self.images, "image")] if self.images or not self.videos else []
        seen += [_count(self.videos, "video")] if self.videos else []
        return f"{' and '.join(seen)}, {_count(self.detections, 'detection')}"


class Runner:
    """A demo at work on its inputs; `summary` says what was done so far."""

    def __init__(self, predictor: Predictor, output: Path, options: Options, total: int) -> None:
        """
        Args:
            predictor: finds the objects.
            output: folder to write into.
            options: what is detected and written.
            total: number of inputs.
        """
        self._predictor = predictor
        self._output = output
        self._options = options
        self._total = total
        self._bones = bones_of(predictor.metadata)
        self._collection = Collection(predictor.metadata)
        self.summary = Summary()

    def run(self, sources: Sequence[Source]) -> Iterator[tuple[Source, str]]:
        """Yield each source when it is done, with what was found in it.

        An input that cannot be read, or whose own picture cannot be written, is left out.

        Raises:
            UserError: if that is the only input.
        """
        pictures = [source for source in sources if not source.is_video]
        # some at once, of which those of one size make a batch
        count = self._options.batch * (_BATCHES if self._options.batch > 1 else 1)
        for start in range(0, len(pictures), count):
            yield from self._run_images(pictures[start : start + count])
        for source in sources:
            if source.is_video:
                try:
                    yield source, self._run_video(source)
                except UserError as error:
                    yield source, self._fail(source, error)

    def finish(self, *, stopped: bool = False) -> Summary:
        """Write the files that hold all images' detections.

        Args:
            stopped: whether `run` was ended before all inputs were looked at.

        Raises:
            UserError: if one cannot be written, or all inputs were left out.
        """
        self.summary.stopped = stopped
        if len(self.summary.failed) == self._total:
            raise UserError(f"all {self._total} inputs were left out")
        if not (stopped or self.summary.detections):
            threshold = self._options.threshold
            logger.warning("nothing has a score of %g or more: try a lower --threshold", threshold)
        for wanted, name, write in (
            (self._options.json, "predictions.json", self._collection.write_json),
            (self._options.csv, "predictions.csv", self._collection.write_csv),
        ):
            if wanted:
                write(self._output / name)
                self.summary.written.append(self._output / name)
        if self._options.coco:
            files = [self._output / "coco_instances_results.json", self._output / "images.json"]
            self._collection.write_coco(*files)
            self.summary.written += files
        return self.summary

    def _run_images(self, sources: Sequence[Source]) -> Iterator[tuple[Source, str]]:
        images = {}
        for source in sources:
            try:
                images[source] = _read(source, self._predictor.max_pixels)
            except UserError as error:
                yield source, self._fail(source, error)
        yield from self._run_decoded(images)

    def _run_decoded(self, images: Mapping[Source, np.ndarray]) -> Iterator[tuple[Source, str]]:
        try:
            found = self._predictor(list(images.values()), score=self._options.threshold)
        except UserError as error:
            if len(images) > 1:  # one of them cannot be used: see which
                for source, image in images.items():
                    yield from self._run_decoded({source: image})
                return
            (source,) = images
            reason = UserError(f"cannot use image {source.shown}: {error}")
            yield source, self._fail(source, reason)
            return
        for (source, image), instances in zip(images.items(), found, strict=True):
            try:
                save_picture(self._draw(image, instances), self._output / source.picture)
            except UserError as error:
                yield source, self._fail(source, error)
                continue
            self._collection.add(source.shown, instances)
            self.summary.images += 1
            self.summary.detections += len(instances)
            yield source, _in_words(instances, self._predictor.class_names)

    def _run_video(self, source: Source) -> str:
        """Write a video and the detections of each of its frames."""
        names = self._predictor.class_names
        frames = []
        with contextlib.ExitStack() as stack:
            video = stack.enter_context(open_video(source.path))
            file = self._output / source.picture
            writer = stack.enter_context(writing_video(file, video.width, video.height, video.fps))
            total = min(video.num_frames, self._options.limit or video.num_frames) or None
            shown = tqdm(video.frames(), total=total, unit="frame", leave=False, disable=None)
            images = islice(shown, self._options.limit)
            while batch := list(islice(images, self._options.batch)):
                found = self._predictor(batch, score=self._options.threshold)
                for image, instances in zip(batch, found, strict=True):
                    picture = self._draw(image, instances, enlarge=False)
                    writer.write(np.ascontiguousarray(np.asarray(picture)[:, :, ::-1]))
                    detections = to_records(instances, names)
                    frames.append({"frame": len(frames), "detections": detections})
        content = {"file": source.shown, "width": video.width, "height": video.height}
        content |= {"fps": video.fps, "class_names": names, "frames": frames}
        write_json(content, self._output / f"{source.name}.json")
        count = sum(len(frame["detections"]) for frame in frames)
        self.summary.videos += 1
        self.summary.detections += count
        return f"{_count(count, 'detection')} in {_count(len(frames), 'frame')}"

    def _draw(
        self, image: np.ndarray, instances: Instances, *, enlarge: bool = True
    ) -> Image.Image:
        names = self._predictor.class_names
        return draw_detections(image, instances, names, bones=self._bones, enlarge=enlarge)

    def _fail(self, source: Source, error: UserError) -> str:
        """Note an input that is left out, and go on if it is one of several."""
        if self._total == 1:
            raise error
        logger.warning("%s", error)
        self.summary.failed.append(source.path)
        return "left out"


def _read(source: Source, max_pixels: int) -> np.ndarray:
    if not source.is_stdin:
        return read_image(source.path, max_pixels)
    content = sys.stdin.buffer.read()
    if not content:
        raise UserError("input -: standard input is empty")
    return decode_image(content, max_pixels, "from standard input")


def _in_words(instances: Instances, class_names: Sequence[str]) -> str:
    """E.g. "3 detections (2 star, 1 cross)"."""
    counts = Counter(class_names[i] for i in instances.pred_classes.tolist())
    each = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return _count(len(instances), "detection") + (f" ({each})" if each else "")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
