"""From a trained detector to a model file that has been seen to work."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from PIL import Image

from .. import __version__
from ..atomic import replacing
from ..config import head_of
from ..errors import UserError
from ..images import to_array
from ..inference import Predictor
from ..weights import settings_of
from ..weights.download import sha256_of
from ..weights.files import read_file, recipe_in
from .card import Card
from .exported import ExportedRCNN
from .formats import require_packages, write
from .pixels import resize, resized_size
from .runtimes import SUFFIXES
from .support import require_exportable
from .verify import Agreement, verify

logger = logging.getLogger(__name__)

# Of height and width, between images to verify with
_FACTORS = ((0.8, 1), (0.6, 1), (0.4, 1), (1.25, 1), (1.6, 1), (2.5, 1), (0.6, 0.8))


def export_detector(
    config: str | Path | CfgNode,
    weights: str | Path | None,
    *,
    format: str,
    output: Path,
    sample: Path,
    check: Path | None = None,
    licence: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Agreement]:
    """Write a self-contained model, from image to detections, and verify the written file.

    Args:
        config: see `Predictor`.
        weights: see `Predictor`.
        format: one of `runtimes.SUFFIXES`.
        output: with that format's suffix; "openvino" writes the weights beside it, as .bin.
        sample: an image with objects to trace the detector with.
        check: an image of other proportions to verify the file on; None for the sample transposed
            and squeezed.
        licence: of the weights, where their file records none.
        overrides: KEY VALUE words.

    Returns:
        How near the file's detections are to the predictor's, by the image's name.

    Raises:
        UserError: for a detector that cannot be exported whole, a file whose detections differ from
            the predictor's, which is not kept, and for anything that cannot be read or written.
    """
    _require_output(format, output)
    require_packages(format)
    read = [(each.name, to_array(each, "RGB")) for each in (sample, check) if each is not None]
    predictor = Predictor(config, weights, device="cpu", overrides=overrides)
    require_exportable(predictor.model)
    card = card_of(predictor, licence)
    Card.from_json(card.to_json(), str(output))  # what the runner would refuse
    images = _to_verify(read, card)
    module = ExportedRCNN(predictor.model, predictor.cfg.INPUT.FORMAT)
    size = resized_size(*read[0][1].shape[:2], card.min_size, card.max_size)
    traced = torch.from_numpy(np.array(resize(read[0][1], *size)))
    names = ("boxes", "scores", "classes", "masks")[: 3 + card.masks]
    with _published(output) as file:
        write(module, traced, names, card.to_json(), format, file)
        try:
            answers = verify(file, predictor, images)
        except UserError as error:
            reason = str(error).replace(str(file), str(output))
            raise UserError(f"{output} is not kept: {reason}") from error
    for name, each in answers.items():
        if not each.count:
            logger.warning("nothing was detected in %s, so it verifies nothing", name)
    return answers


def _require_output(format: str, output: Path) -> None:
    if format not in SUFFIXES:
        raise UserError(f"format {format!r} is not one of {', '.join(SUFFIXES)}")
    if output.suffix != SUFFIXES[format]:
        raise UserError(f"{output} is to be {format}: its name has to end in {SUFFIXES[format]}")
    if output.is_dir():
        raise UserError(f"{output} is a folder: name a file")
    weights = output.with_suffix(".bin")
    if format == "openvino" and weights.exists() and not output.exists():
        raise UserError(f"{weights} exists without {output.name}: take another name than {output}")


def card_of(predictor: Predictor, licence: str | None = None) -> Card:
    """What the model file will say about itself.

    Args:
        predictor: of the detector.
        licence: of its weights, where their file records none.

    Raises:
        UserError: if it records another one.
    """
    cfg = predictor.cfg
    weights = Path(PathManager.get_local_path(cfg.MODEL.WEIGHTS.split("?")[0]))
    recipe = recipe_in(read_file(weights), str(weights))
    recorded = recipe.licence if recipe else "unknown"
    if licence is not None and recorded not in ("unknown", licence):
        raise UserError(f"licence {licence!r}: {weights} records {recorded!r}")
    settings = settings_of(cfg)
    return Card(
        class_names=tuple(predictor.class_names),
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        masks=bool(cfg.MODEL.MASK_ON),
        image_format=cfg.INPUT.FORMAT,
        pixel_mean=tuple(map(float, cfg.MODEL.PIXEL_MEAN)),
        pixel_std=tuple(map(float, cfg.MODEL.PIXEL_STD)),
        size_divisibility=max(predictor.model.backbone.size_divisibility, 1),
        score_threshold=float(cfg.MODEL[head_of(cfg)].SCORE_THRESH_TEST),
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        variant=settings.variant if settings else f"R-{cfg.MODEL.RESNETS.DEPTH}",
        licence=licence or recorded,
        source=recipe.source if recipe else "unknown",
        weights_sha256=sha256_of(weights),
        made_by=f"resnext_det {__version__}",
    )


def _to_verify(read: list[tuple[str, np.ndarray]], card: Card) -> dict[str, np.ndarray]:
    """Two images that the network sees at different sizes, by name.

    Args:
        read: the sample and, where there is one, the check image, with their names.

    Raises:
        UserError: if it would see them at the same size.
    """
    (name, image), *more = read
    if not more:
        return {name: image, f"{name} transposed and squeezed": _other_proportions(image, card)}
    check, second = more[0]
    if _padded(*second.shape[:2], card) == _padded(*image.shape[:2], card):
        raise UserError(
            f"check image {check}: the network would see it as large as {name}: take one of other "
            "proportions"
        )
    return {name: image, f"{check} (check)" if check == name else check: second}


def _padded(height: int, width: int, card: Card) -> tuple[int, int]:
    """Height and width at which the network sees an image of some height and width."""
    size = resized_size(height, width, card.min_size, card.max_size)
    return tuple(side + -side % card.size_divisibility for side in size)


def _other_proportions(image: np.ndarray, card: Card) -> np.ndarray:
    """An image's transpose, squeezed so that the network sees another height and width of it.

    Where no factor changes both, as of a square image that is resized to a square, one has to do.

    Raises:
        UserError: if the network would see them at the same size.
    """
    height, width = image.shape[:2]
    size = _padded(height, width, card)
    differing = {}
    for down, across in _FACTORS:
        turned = max(round(width * down), 1), max(round(height * across), 1)
        other = _padded(*turned, card)
        differing.setdefault(sum(a != b for a, b in zip(size, other, strict=True)), turned)
        if 2 in differing:
            break
    best = max(differing)
    if not best:
        raise UserError(
            f"the sample image of {width} x {height} pixels is too small to verify with"
        )
    height, width = differing[best]
    turned = Image.fromarray(image).transpose(Image.Transpose.TRANSPOSE)
    return np.asarray(turned.resize((width, height)))


@contextlib.contextmanager
def _published(output: Path) -> Iterator[Path]:
    """A temporary name to write to and verify; it becomes `output` if nothing fails.

    OpenVINO's weights, beside it, come first: the description without them would be of no use.
    """
    with replacing(output) as file:
        weights = file.with_suffix(".bin")
        try:
            yield file
            if weights.is_file():
                with replacing(output.with_suffix(".bin")) as moved:
                    os.replace(weights, moved)
        finally:
            weights.unlink(missing_ok=True)
