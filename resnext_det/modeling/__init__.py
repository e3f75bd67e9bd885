"""Networks, and their registration with Detectron2."""

from .classifier import CifarResNeXt, Classifier, ImageClassifier, saved_module
from .forms import convert_form, form_of
from .fpn import build_resnext_fpn_backbone, build_retinanet_resnext_fpn_backbone
from .image_batch import ImageBatch
from .resnext import ResNeXt, build_resnext_backbone, make_resnext_stage, variant_from_config
from .roi_heads import ResNeXtRes5ROIHeads

__all__ = [
    "CifarResNeXt",
    "Classifier",
    "ImageBatch",
    "ImageClassifier",
    "ResNeXt",
    "ResNeXtRes5ROIHeads",
    "build_resnext_backbone",
    "build_resnext_fpn_backbone",
    "build_retinanet_resnext_fpn_backbone",
    "convert_form",
    "form_of",
    "make_resnext_stage",
    "saved_module",
    "variant_from_config",
]
