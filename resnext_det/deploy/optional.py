"""Packages that only deployment needs, and not all of it."""

import contextlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from types import ModuleType

from ..errors import UserError

# The extra of setup.py that installs a package
_EXTRAS = {
    "nncf": "openvino",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
}


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not."""
    return sys.modules.get(package) is not None or (
        package not in sys.modules and importlib.util.find_spec(package) is not None
    )


def how_to_install(package: str) -> str:
    """The command that installs a package."""
    return f"pip install 'resnext_det[{_EXTRAS[package]}]'"


def import_package(package: str) -> ModuleType:
    """Import an optional package.

    OpenVINO's converter and NNCF report each use to their makers if they find the package
    `openvino_telemetry`. They do not find it, unless the program has imported it before.

    Raises:
        UserError: with the command that installs it, if it is absent.
    """
    if not is_installed(package):
        raise UserError(f"{package} is not installed: {how_to_install(package)}")
    with _without("openvino_telemetry"), _quiet("torch.utils.cpp_extension"):
        if package == "openvino":
            importlib.import_module("openvino.tools.ovc")
        return importlib.import_module(package)


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None
    try:
        yield
    finally:
        del sys.modules[package]


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """NNCF makes torch look for CUDA's compiler, and say so."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
