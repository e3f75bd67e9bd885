"""Between the web demo's page and the predictor: uploads become images, detections become JSON."""

import base64
import io
import warnings
from collections.abc import Sequence

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation
from detectron2.structures import Instances
from PIL import Image, UnidentifiedImageError

from ..errors import one_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # what every browser can show
HARD_MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow itself refuses
_PICTURE_SIDE = 2048  # pixels, at most


class Refusal(Exception):
    """A request that the server does not serve.

    Attributes:
        status: of the HTTP answer, 400 to 599.
        reason: for the person at the page.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def open_upload(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an uploaded image; of an animation the first frame.

    The size is read from the header, and nothing is decoded of an image that is too large: a
    few kB can claim more pixels than the memory holds (a decompression bomb).

    Args:
        data: the file's content.
        max_pixels: largest width x height, at most `HARD_MAX_PIXELS`.

    Returns:
        The image in its own mode, not yet turned as its EXIF data says.

    Raises:
        Refusal: 415 for what is no image of `FORMATS`, 413 for too many pixels, 400 for a
            damaged or cut off file.
    """
    limit = f"at most {max_pixels / 1e6:g} million pixels are taken: make it smaller"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a limit
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise Refusal(413, f"The image has {width} x {height} pixels; {limit}.")
        image.load()
    except Image.DecompressionBombError:
        raise Refusal(413, f"The image has far too many pixels; {limit}.") from None
    except UnidentifiedImageError:
        names = ", ".join(FORMATS).replace("WEBP", "WebP")
        raise Refusal(415, f"This is no image that can be read; send one of {names}.") from None
    except Refusal:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = one_line(error)
        raise Refusal(400, f"The image is damaged or cut off ({reason}).") from error
    return image


def upright_picture(image: Image.Image) -> str | None:
    """A picture to show in place of the file where browsers do not turn it upright.

    All turn a JPEG as its EXIF data says; Chromium does not turn a WebP.

    Returns:
        A JPEG of at most 2048 pixels a side as a data URL; None where the file itself will do.
    """
    turned = _apply_exif_orientation(image)  # as for the detector; damaged EXIF data is none
    if turned is image or image.format in ("JPEG", "MPO"):
        return None
    picture = turned.convert("RGB")
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    return _data_url(picture, "JPEG", quality=90)


def describe_detections(found: Instances, class_names: Sequence[str]) -> list[dict]:
    """Turn a predictor's detections into what JSON can hold, highest score first.

    Args:
        found: in pixels of the upright image, with pred_boxes (N, 4) as x0, y0, x1, y1, scores
            from 0 to 1 and pred_classes (N,); maybe pred_masks (N, H, W) bool and
            pred_keypoints (N, K, 3) as x, y, score.
        class_names: by class.

    Returns:
        For each detection "box", "score", "class" (contiguous, from 0) and "name"; "mask" where
        the model has masks and this one is not empty, see `encode_mask`; "keypoints" where it
        has these.
    """
    found = found.to("cpu")
    found = found[found.scores.argsort(descending=True, stable=True)]
    items = []
    for box, score, number in zip(
        found.pred_boxes.tensor.tolist(),
        found.scores.tolist(),
        found.pred_classes.tolist(),
        strict=True,
    ):
        box = [round(v, 2) for v in box]
        items.append({"box": box, "score": score, "class": number, "name": class_names[number]})
    if found.has("pred_masks"):
        for item, mask in zip(items, found.pred_masks.numpy(), strict=True):
            if mask.any():
                item["mask"] = encode_mask(mask)
    if found.has("pred_keypoints"):
        for item, points in zip(items, found.pred_keypoints.tolist(), strict=True):
            item["keypoints"] = points
    return items


def encode_mask(mask: np.ndarray) -> dict:
    """Write a mask as a small picture.

    Args:
        mask: (H, W) bool, not empty.

    Returns:
        "x", "y": pixels of the image at which the picture's upper left corner is; "url": a data
        URL of a PNG of one bit a pixel, cropped to the mask, transparent where it is not.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    y0, y1, x0, x1 = (int(v) for v in (rows[0], rows[-1], columns[0], columns[-1]))
    picture = Image.fromarray(mask[y0 : y1 + 1, x0 : x1 + 1])
    return {"x": x0, "y": y0, "url": _data_url(picture, "PNG", transparency=0)}


def _data_url(image: Image.Image, kind: str, **options: object) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    code = base64.b64encode(content.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{code}"
