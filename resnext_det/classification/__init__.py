"""Testing of classifiers on ImageNet and sets of its kind."""

from .folder import ImageTree, read_tree
from .network import Classifier, LoadedClassifier, load_classifier
from .protocols import Protocol
from .testing import Outcome, run_test
from .topk import Errors

__all__ = [
    "Classifier",
    "Errors",
    "ImageTree",
    "LoadedClassifier",
    "Outcome",
    "Protocol",
    "load_classifier",
    "read_tree",
    "run_test",
]
