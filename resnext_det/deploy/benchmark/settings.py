"""What a benchmark measures, and on what."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...config import suggest
from ...errors import UserError
from ..engines import why_missing

BASELINE = "detectron2"
SCOPES = ("backbone", "whole")

# name: what tables call it
TITLES = {
    BASELINE: "Detectron2",
    "ours": "ours",
    "eager-f32": "ours, eager fused f32",
    "eager-bf16": "ours, eager fused bf16",
    "compile-f32": "ours, torch.compile f32",
    "compile-bf16": "ours, torch.compile bf16",
    "openvino-f32": "ours, OpenVINO f32",
    "openvino-bf16": "ours, OpenVINO bf16",
    "openvino-int8": "ours, OpenVINO int8",
    "torchvision": "torchvision",
    "onnx-onnxruntime": "exported, ONNX Runtime",
    "onnx-openvino": "exported, OpenVINO",
}
BACKBONE_ONLY = ("onnx-onnxruntime", "onnx-openvino")
# forms that OpenVINO makes pointless
SLOWER = ("eager-f32", "eager-bf16", "compile-f32", "compile-bf16")

_SMALLEST, _LARGEST = 64, 4096  # pixels of the shorter side
_COCO_WIDTH = 1216 / 800  # of the commonest landscape photo, resized and padded to 32 pixels


@dataclass(frozen=True)
class Settings:
    """A benchmark.

    Attributes:
        config: of the detector: a file, or the name of a shipped config.
        overrides: KEY VALUE words for it.
        weights: a detector's file; None for random weights.
        image: a photo; None for noise.
        size: shorter side of the image in pixels.
        repeats: timed runs of each side with one image.
        warmup: untimed runs before them.
        batches: images in a call, of the rates.
        streams: images that run at the same time, of the rates.
        scopes: of `SCOPES`.
        sides: names of `TITLES`; empty for all but those that OpenVINO makes pointless.
        calibration_images: noise images that int8 is calibrated on.
        memory: measure peak memory too, each side in a process of its own.
        parts: time the parts of detectors too.
        forms: time the three forms of Fig. 3 too.
    """

    config: str
    overrides: Sequence[str] = ()
    weights: str | None = None
    image: Path | None = None
    size: int = 800
    repeats: int = 5
    warmup: int = 1
    batches: Sequence[int] = (1, 2, 4)
    streams: Sequence[int] = (1, 2)
    scopes: Sequence[str] = SCOPES
    sides: Sequence[str] = ()
    calibration_images: int = 2
    memory: bool = True
    parts: bool = False
    forms: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            UserError: for a number out of range, or an unknown side.
        """
        if not _SMALLEST <= self.size <= _LARGEST:
            raise UserError(f"--size {self.size}: give {_SMALLEST} to {_LARGEST} pixels")
        for flag, values, least in (
            ("--repeats", [self.repeats], 1),
            ("--warmup", [self.warmup], 0),
            ("--batch", self.batches, 1),
            ("--streams", self.streams, 1),
            ("--calibration-images", [self.calibration_images], 1),
        ):
            for value in values:
                if value < least:
                    raise UserError(f"{flag} {value}: at least {least}")
        for name in self.sides:
            if name != "all" and name not in TITLES:
                hint = suggest(name, TITLES) or f": one of {', '.join(TITLES)}, or all"
                raise UserError(f"--sides {name} is unknown{hint}")
            if name in BACKBONE_ONLY and "backbone" not in self.scopes:
                raise UserError(f"--sides {name} is of backbones alone: leave --scope whole out")

    def names(self, scope: str) -> list[str]:
        """The sides of a scope, the baseline first."""
        if "all" in self.sides:
            chosen = set(TITLES)
        elif self.sides:
            chosen = {BASELINE, *self.sides}
        else:
            chosen = set(TITLES) - set(SLOWER if why_missing("openvino") is None else ())
        return [
            n for n in TITLES if n in chosen and (scope == "backbone" or n not in BACKBONE_ONLY)
        ]

    @property
    def landscape(self) -> tuple[int, int]:
        """Height and width of a noise image, in pixels; the width is a multiple of 32."""
        return self.size, round(self.size * _COCO_WIDTH / 32) * 32
