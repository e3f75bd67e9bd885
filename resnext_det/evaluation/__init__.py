"""Evaluation on COCO and data sets of its kind."""

from .coco import QuietCOCOEvaluator, build_coco_evaluator

__all__ = ["QuietCOCOEvaluator", "build_coco_evaluator"]
