"""Keep deprecations inside Detectron2, which no user can act on, off the console."""

import logging
import warnings

_WARNINGS = (
    "`?torch.jit.script",
    "torch.meshgrid",
    "__array__ implementation",
    "The given NumPy array is not writable",
    "pkg_resources is deprecated",
    ".?broadcast_buffers",
)
_LOGGERS = ("torch.utils.cpp_extension", "torch.fx._symbolic_trace")


def silence_deprecations() -> None:
    """Filter them in this process. For programs; importing the package filters nothing."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
