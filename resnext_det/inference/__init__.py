"""Trained detectors at work on images and videos."""

from .outputs import to_dict
from .predictor import Predictor

__all__ = ["Predictor", "to_dict"]
