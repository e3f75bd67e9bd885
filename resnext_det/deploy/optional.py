"""Packages that only deployment needs, and not all of it."""

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType

from ..errors import UserError, one_line

# The extra of setup.py that installs a package
_EXTRAS = {
    "nncf": "openvino",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
}


def import_package(name: str) -> ModuleType:
    """Import an optional package, or a module in one.

    OpenVINO's converter (`openvino.tools.ovc`, which has to be imported by this function before it
    is used) and NNCF report each use to their makers if they find the package
    `openvino_telemetry`. They do not find it, unless the program has imported it before.

    Raises:
        UserError: with the command that installs it, if it is absent or cannot be imported.
    """
    package = name.split(".")[0]
    remedy = f"pip install 'resnext_det[{_EXTRAS[package]}]'"
    absent = package in sys.modules and sys.modules[package] is None
    if absent or (package not in sys.modules and importlib.util.find_spec(package) is None):
        raise UserError(f"{package} is not installed: {remedy}")
    try:
        with _without("openvino_telemetry"), quiet():
            return importlib.import_module(name)
    except Exception as error:  # a part of it, or a library of the system, is missing or too old
        reason = one_line(error)
        raise UserError(f"{name} cannot be imported ({reason}): {remedy}") from error


@cache
def openvino_core():
    """The one `openvino.Core` of this process, which whoever compiles for the CPU has to take.

    A Core's CPU plugin gives the thread that loads it another stack for signal handlers, and at
    its end the one from before (SigAltStackSetup in OpenVINO's plugins/intel_cpu). Of two Cores
    that end in the order in which they were made, the second gives back the first's, whose memory
    is gone: the next signal with a handler, as of Ctrl-C or a data worker's end, kills the process
    without a word.

    Raises:
        UserError: see `import_package`.
    """
    return import_package("openvino").Core()


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Let packages that make Cores of their own, as NNCF does, take `openvino_core`."""
    openvino, core = import_package("openvino"), openvino_core()
    kind = openvino.Core
    openvino.Core = lambda: core
    try:
        yield
    finally:
        openvino.Core = kind


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
def quiet() -> Iterator[None]:
    """Keep what such packages say to their own developers off the user's screen."""
    silenced, kind = logging.root.manager.disable, logging.getLoggerClass()
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(silenced)
            logging.setLoggerClass(kind)  # NNCF would make all later loggers its own kind
