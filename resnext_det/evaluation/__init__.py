"""Evaluation on COCO and data sets of its kind."""

from .coco import build_coco_evaluator, evaluation_folder
from .evaluator import CocoEvaluator

__all__ = ["CocoEvaluator", "build_coco_evaluator", "evaluation_folder"]
