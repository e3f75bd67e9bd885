"""Pretrained weights: where they come from, and loading that proves that they arrived."""

from .catalog import register_weights
from .loading import StrictCheckpointer

__all__ = ["StrictCheckpointer", "register_weights"]
