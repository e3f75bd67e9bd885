"""Evaluation on COCO and data sets of its kind."""

from .coco import QuietCOCOEvaluator, build_coco_evaluator, evaluation_folder

__all__ = ["QuietCOCOEvaluator", "build_coco_evaluator", "evaluation_folder"]
