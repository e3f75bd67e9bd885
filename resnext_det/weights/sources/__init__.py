"""One module per public source of weights; each renames tensors to Detectron2's names."""

from .torchvision import from_torchvision

__all__ = ["from_torchvision"]
