"""Detect objects with an exported model: `python -m resnext_det.deploy.run MODEL IMAGE...`

Needs NumPy, Pillow and the model's engine; neither Detectron2 nor the rest of this package, and
for ONNX and OpenVINO no PyTorch.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import numpy as np

from ..errors import UserError, one_line
from ..images import ImageInput, to_array
from .pixels import paste_mask, resize, resized_size
from .runtimes import open_model


class ExportedDetector:
    """A model file of `tools/export_model.py` as a function of an image.

    Threads may share one: calls do not wait for each other or change it.

    Attributes:
        card: what the file says about itself.
        class_names: by class.
    """

    def __init__(self, file: str | Path) -> None:
        """Load the file.

        Raises:
            UserError: see `open_model`.
        """
        self._file = Path(file)
        self.card, self._run = open_model(self._file)
        self.class_names = self.card.class_names

    def __call__(self, image: ImageInput, *, score: float = 0.0, paste: bool = True) -> dict:
        """Detect objects.

        Args:
            image: a path, a PIL image, or an array, (H, W, 3) RGB uint8, 0..255.
            score: detections with a lower score, 0..1, are left out.
            paste: masks in the image; False for what the model gives, within the boxes.

        Returns:
            N detections, best score first, in pixels of this image: `boxes` (N, 4) float32, x1, y1,
            x2, y2; `scores` (N,) float32; `classes` (N,) int64, from 0; `class_names`, a list; of
            models with them `masks` (N, H, W) bool, or not pasted (N, M, M) float32, probabilities.

        Raises:
            UserError: for an image or a score that cannot be used.
        """
        if not (isinstance(score, Real) and 0 <= score <= 1):
            raise UserError(f"score {score!r}: a threshold is a number from 0 to 1")
        image = to_array(image, "RGB")
        height, width = image.shape[:2]
        size = resized_size(height, width, self.card.min_size, self.card.max_size)
        boxes, scores, classes, *masks = self._infer(image, size)
        scale = np.array([width / size[1], height / size[0]] * 2)
        boxes = (boxes * scale).astype(np.float32)
        boxes = boxes.clip(0, np.array([width, height] * 2, dtype=np.float32))
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        kept = np.flatnonzero(has_area & (scores >= score))
        found = {
            "boxes": boxes[kept],
            "scores": scores[kept],
            "classes": classes[kept],
            "class_names": [self.class_names[i] for i in classes[kept]],
        }
        if masks and not paste:
            found["masks"] = masks[0][kept]
        elif masks:
            pasted = [paste_mask(masks[0][i], boxes[i], height, width) for i in kept]
            found["masks"] = np.array(pasted, dtype=bool).reshape(-1, height, width)
        return found

    def _infer(self, image: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
        """Run the model on an image resized to `size`, and check what comes back."""
        try:
            # engines want memory of their own: a PIL image's is read-only
            resized = np.array(resize(image, *size), order="C")
            outputs = [np.asarray(out) for out in self._run(resized)]
        except Exception as error:  # engines raise whatever they like
            raise UserError(
                f"{self._file} cannot run on an image resized to {size[1]} x {size[0]} pixels: "
                f"{one_line(error)}"
            ) from error
        shapes = [out.shape for out in outputs]
        count = shapes[0][:1]
        expected = [(*count, 4), count, count]
        expected += [(*count, *shapes[3][1:])] if self.card.masks and len(shapes) > 3 else []
        whole = len(outputs) == 3 + self.card.masks and shapes == expected
        if not whole or (self.card.masks and len(shapes[3]) != 3):
            raise UserError(f"{self._file}: its outputs have shapes {shapes}: not a detector's")
        kinds = "".join(out.dtype.kind for out in outputs)
        if kinds != "ffif"[: len(kinds)]:
            types = ", ".join(str(out.dtype) for out in outputs)
            raise UserError(f"{self._file}: its outputs are {types}: not a detector's")
        scores, classes = outputs[1:3]
        if not ((scores >= 0) & (scores <= 1)).all():
            raise UserError(f"{self._file}: it found scores that are not from 0 to 1")
        if classes.size and not 0 <= classes.min() <= classes.max() < len(self.class_names):
            raise UserError(f"{self._file}: it found classes that its card does not name")
        return outputs


def _records(found: dict) -> list[dict]:
    """Detections as what JSON can hold; masks are too large for it."""
    rows = zip(found["class_names"], found["scores"].tolist(), found["boxes"].tolist(), strict=True)
    return [
        {"class": name, "score": round(score, 4), "box": [round(v, 2) for v in box]}
        for name, score, box in rows
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Print what is found in images.

    Returns:
        0, or 1 after a mistake, which is printed.
    """
    parser = argparse.ArgumentParser(prog="python -m resnext_det.deploy.run", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a file of tools/export_model.py")
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("--score", type=float, default=0.5, help="0..1, 0.5 by default")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    args = parser.parse_args(words)
    try:
        detector = ExportedDetector(args.model)
        for file in args.images:
            records = _records(detector(file, score=args.score))
            if args.json:
                print(json.dumps({"file": file, "detections": records}))
                continue
            print(f"{file}: {len(records)} objects")
            for each in records:
                box = " ".join(f"{v:.1f}" for v in each["box"])
                print(f"  {each['class']} {each['score']:.3f}  {box}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
