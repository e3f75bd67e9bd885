"""Detectors for CPUs: optimised in place, quantised, exported.

`run` is the runner of exported detectors, which works where Detectron2 is not installed; so names
that need it are imported where they are used.
"""

__all__ = ["optimize"]


def __getattr__(name: str) -> object:
    if name == "optimize":
        from .compiled import optimize

        return optimize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
