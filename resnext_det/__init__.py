"""ResNeXt (Xie et al., CVPR 2017) for Detectron2.

Importing this package registers the ResNeXt backbones, the C4 RoI head, the datasets
`coco_trainval35k`, `coco_minival`, `shapes_train` and `shapes_minival`, and the weights of the
shipped configs (`resnext://...`) with Detectron2. It reads no file and touches no network.
"""

import sys
import warnings

try:
    with warnings.catch_warnings():  # deprecations inside Detectron2, for its maintainers to mend
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        import detectron2.modeling  # noqa: F401
except Exception as error:  # absent, or broken by a version of what it needs
    # Without Detectron2 `resnext_det.doctor` and `resnext_det.deploy.run` work all the same.
    _missing = error

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        from .doctor import detectron2_command

        if (getattr(_missing, "name", None) or "").split(".")[0] == "detectron2":
            remedy = f"Install it with: {detectron2_command()}"
        else:
            remedy = f"See what is missing with: {sys.executable} -m resnext_det.doctor"
        raise ImportError(
            f"resnext_det.{name} needs Detectron2 ({_missing}). {remedy}"
        ) from _missing

else:
    from .config import add_resnext_config, get_cfg, register_training_keys
    from .data import register_datasets
    from .inference import Predictor
    from .modeling import (
        ResNeXt,
        ResNeXtRes5ROIHeads,
        build_resnext_backbone,
        build_resnext_fpn_backbone,
        build_retinanet_resnext_fpn_backbone,
        convert_form,
    )
    from .variants import Variant
    from .weights import register_weights

    register_training_keys()
    register_datasets()
    register_weights()

    __all__ = [
        "Predictor",
        "ResNeXt",
        "ResNeXtRes5ROIHeads",
        "Variant",
        "add_resnext_config",
        "build_resnext_backbone",
        "build_resnext_fpn_backbone",
        "build_retinanet_resnext_fpn_backbone",
        "convert_form",
        "get_cfg",
    ]

__version__ = "0.1.0"
