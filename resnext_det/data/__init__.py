"""Data sets and how they are read."""

from .coco_splits import register_coco_splits, require_files, require_registered
from .mapper import NamingDatasetMapper
from .shapes import register_shapes


def register_datasets() -> None:
    """Register every data set of this package with Detectron2. No file is touched."""
    register_coco_splits()
    register_shapes()


__all__ = ["NamingDatasetMapper", "register_datasets", "require_files", "require_registered"]
