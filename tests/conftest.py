import logging

import pytest
from detectron2.utils.logger import setup_logger


@pytest.fixture(autouse=True)
def loggers_as_they_were():
    """A job adds log handlers to its process; take them away again."""
    yield
    setup_logger.cache_clear()
    for name in ("resnext_det", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
