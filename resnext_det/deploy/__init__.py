"""Detectors for CPUs: optimised in place, quantised, exported.

`run` is the runner of exported detectors; it imports neither Detectron2 nor the rest of this
package, so names that need them are imported where they are used.
"""

__all__ = ["optimize"]


def __getattr__(name: str) -> object:
    if name == "optimize":
        from .compiled import optimize

        return optimize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
