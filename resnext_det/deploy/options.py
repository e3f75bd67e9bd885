"""What the command line says of optimised inference."""

import argparse
import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, one_line

PRECISIONS = ("f32", "bf16", "int8")


@dataclass(frozen=True)
class Optimization:
    """How a detector is optimised for an evaluation.

    Attributes:
        precision: "f32", "bf16", "int8" to quantise now, or None for `folder`.
        folder: of an int8 model that was written before, or None.
        calibration_images: number of training images to quantise with.
        max_ap_loss: points of AP that an int8 model may lose and still be written.
    """

    precision: str | None
    folder: Path | None = None
    calibration_images: int = 100
    max_ap_loss: float = 1.0


def add_optimize_argument(parser: argparse._ActionsContainer, *, int8: bool) -> None:
    """Add `--optimize`; with `int8` for programs that can quantise, with the flags of that."""
    names = "f32, bf16, int8" if int8 else "f32, bf16"
    parser.add_argument(
        "--optimize",
        nargs="?",
        const="f32",
        metavar="HOW",
        help=f"compile the detector for this CPU: {names}, or the folder of an int8 model; f32 if "
        "nothing follows",
    )
    if not int8:
        return
    parser.add_argument(
        "--calibration-images",
        metavar="N",
        help="training images that int8 is calibrated on (default 100)",
    )
    parser.add_argument(
        "--max-ap-loss",
        metavar="AP",
        help="do not write an int8 model that loses more points of AP (default 1.0)",
    )


def parse_how(value: str, *, int8: bool) -> tuple[str | None, Path | None]:
    """What `--optimize` says: a precision, or the folder of an int8 model.

    Args:
        value: the word.
        int8: whether there are images to calibrate int8 with.

    Raises:
        UserError: for neither, or int8 without images.
    """
    if value == "int8" and not int8:
        raise UserError(
            "--optimize int8 needs images to calibrate with: run tools/train_net.py --eval-only "
            "--optimize int8 with a YAML config, and name the folder that it writes"
        )
    if value in PRECISIONS:
        return value, None
    with contextlib.suppress(OSError):  # a name that is too long
        if value and Path(value).is_dir():
            return None, Path(value)
    raise UserError(
        f"--optimize {one_line(value)} is neither one of {', '.join(PRECISIONS)} nor the folder of "
        "an int8 model"
    )


def parse_optimization(args: argparse.Namespace, *, int8: bool = True) -> Optimization | None:
    """What the flags of `add_optimize_argument` say; None without `--optimize`.

    Args:
        args: parsed.
        int8: see `parse_how`.

    Raises:
        UserError: for a value that cannot be used, or flags that do not go together.
    """
    how = getattr(args, "optimize", None)
    images = getattr(args, "calibration_images", None)
    loss = getattr(args, "max_ap_loss", None)
    if how is None or how != "int8":
        for flag, value in (("--calibration-images", images), ("--max-ap-loss", loss)):
            if value is not None:
                raise UserError(f"{flag} goes with --optimize int8")
    if how is None:
        return None
    if not args.eval_only:
        raise UserError("--optimize goes with --eval-only: optimised detectors cannot be trained")
    precision, folder = parse_how(how, int8=int8)
    known = Optimization(precision, folder)
    return Optimization(
        precision,
        folder,
        known.calibration_images if images is None else _count(images),
        known.max_ap_loss if loss is None else _points(loss),
    )


def _count(value: str) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f"--calibration-images {value}: give a whole number from 1")
    return int(value)


def _points(value: str) -> float:
    try:
        points = float(value)
    except ValueError:
        points = math.nan
    if not 0 <= points <= 100:
        raise UserError(f"--max-ap-loss {value}: give points of AP, from 0 to 100")
    return points
