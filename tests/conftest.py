import logging

import pytest
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger

from resnext_det.data.coco_splits import KEYPOINT_SPLITS, SPLITS
from resnext_det.data.shapes import SPLIT_SIZES


@pytest.fixture(autouse=True)
def loggers_as_they_were():
    """A job adds log handlers to its process; take them away again."""
    yield
    setup_logger.cache_clear()
    for name in ("resnext_det", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


@pytest.fixture(autouse=True)
def places_of_data_are_forgotten():
    """Tests put the embedded images and COCO's splits into folders of their own."""
    yield
    for name in (*SPLIT_SIZES, *SPLITS, *KEYPOINT_SPLITS):
        for key in ("json_file", "image_root"):
            vars(MetadataCatalog.get(name)).pop(key, None)
