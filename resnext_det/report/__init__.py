"""A run's results as one HTML page that needs nothing else, and several runs compared."""

from .page import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
