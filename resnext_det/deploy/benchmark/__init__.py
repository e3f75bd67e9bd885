"""The speed of a detector on this CPU, beside other implementations of the same network."""

from .run import run_benchmark
from .settings import Settings

__all__ = ["Settings", "run_benchmark"]
