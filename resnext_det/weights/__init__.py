"""Pretrained weights: where they come from, and loading that proves that they arrived."""

from .download import register_weights
from .loading import StrictCheckpointer
from .recipe import settings_of

__all__ = ["StrictCheckpointer", "register_weights", "settings_of"]
