"""From a trained detector to a model file that has been seen to work."""

import contextlib
import hashlib
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
from ..weights.files import read_file, recipe_in
from .card import Card
from .exported import ExportedRCNN
from .formats import write
from .pixels import resize
from .runtimes import SUFFIXES
from .support import require_exportable
from .verify import Agreement, verify

logger = logging.getLogger(__name__)


def export_detector(
    config: str | Path | CfgNode,
    weights: str | Path | None,
    *,
    format: str,
    output: Path,
    sample: Path,
    check: Path | None = None,
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
        overrides: KEY VALUE words.

    Returns:
        How near the file's detections are to the predictor's, by the image's name.

    Raises:
        UserError: for a detector that cannot be exported whole, a file whose detections differ from
            the predictor's, which is not kept, and for anything that cannot be read or written.
    """
    if format not in SUFFIXES:
        raise UserError(f"format {format!r} is not one of {', '.join(SUFFIXES)}")
    if output.suffix != SUFFIXES[format]:
        raise UserError(f"{output} is to be {format}: its name has to end in {SUFFIXES[format]}")
    image = to_array(sample, "RGB")
    images = {sample.name: image}
    if check is None:
        images[f"{sample.name} transposed and squeezed"] = _other_proportions(image)
    else:
        name = f"{check.name} (check)" if check.name == sample.name else check.name
        images[name] = to_array(check, "RGB")
    predictor = Predictor(config, weights, device="cpu", overrides=overrides)
    require_exportable(predictor.model)
    card = card_of(predictor)
    module = ExportedRCNN(predictor.model, predictor.cfg.INPUT.FORMAT)
    traced = torch.from_numpy(np.array(resize(image, card.min_size, card.max_size)))
    names = ("boxes", "scores", "classes", "masks")[: 3 + card.masks]
    with _published(output) as file:
        write(module, traced, names, card.to_json(), format, file)
        try:
            answers = verify(file, predictor, images)
        except UserError as error:
            reason = str(error).replace(str(file), str(output))
            raise UserError(f"{output} is not kept: {reason}") from error
    if not any(each.count for each in answers.values()):
        logger.warning("nothing was detected in the images: the check of %s is empty", output)
    return answers


def card_of(predictor: Predictor) -> Card:
    """What the model file will say about itself."""
    cfg = predictor.cfg
    weights = Path(PathManager.get_local_path(cfg.MODEL.WEIGHTS.split("?")[0]))
    recipe = recipe_in(read_file(weights), str(weights))
    settings = settings_of(cfg)
    return Card(
        class_names=tuple(predictor.class_names),
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        masks=bool(cfg.MODEL.MASK_ON),
        score_threshold=float(cfg.MODEL[head_of(cfg)].SCORE_THRESH_TEST),
        variant=settings.variant if settings else f"R-{cfg.MODEL.RESNETS.DEPTH}",
        licence=recipe.licence if recipe else "unknown",
        source=recipe.source if recipe else "unknown",
        weights_sha256=_sha256(weights),
        made_by=f"resnext_det {__version__}",
    )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _other_proportions(image: np.ndarray) -> np.ndarray:
    """An image's transpose at four fifths of its height."""
    turned = Image.fromarray(image).transpose(Image.Transpose.TRANSPOSE)
    return np.asarray(turned.resize((turned.width, max(turned.height * 4 // 5, 1))))


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
