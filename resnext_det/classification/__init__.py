"""Classifiers on ImageNet, CIFAR and sets of their kind: testing and training."""

from .folder import ImageTree, read_tree
from .image_set import ImageSet
from .network import Classifier, LoadedClassifier, load_classifier
from .protocols import Protocol
from .reading import read_images
from .testing import Outcome, run_test
from .topk import Errors

__all__ = [
    "Classifier",
    "Errors",
    "ImageSet",
    "ImageTree",
    "LoadedClassifier",
    "Outcome",
    "Protocol",
    "load_classifier",
    "read_images",
    "read_tree",
    "run_test",
]
