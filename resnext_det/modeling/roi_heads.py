"""The C4 head of the paper's detectors: conv5 runs on each region (Appendix B, after [14])."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import Tensor, nn
from torchvision.ops import RoIPool

from .checkpointing import CheckpointedStage
from .resnext import block_options_from_config, make_resnext_stage, variant_from_config


class _RoIPool(RoIPool):
    """torchvision's `RoIPool` for features of any type; Detectron2's boxes are always float32.

    On a CPU torchvision pools no half precision, and in bfloat16 boxes would move by pixels.
    """

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        if input.dtype == torch.bfloat16 or (input.dtype == torch.half and not input.is_cuda):
            return super().forward(input.float(), rois.float()).to(input.dtype)
        return super().forward(input, rois.to(input.dtype))


@ROI_HEADS_REGISTRY.register()
class ResNeXtRes5ROIHeads(Res5ROIHeads):
    """`Res5ROIHeads` whose res5 is the same ResNeXt's conv5, at every depth.

    Detectron2's class always builds three plain bottlenecks from `MODEL.RESNETS`; this one builds
    the stage that the variant has. Parameter names are the same (`roi_heads.res5.0.conv1.weight`).
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """See `Res5ROIHeads.from_config`; with ROIPool, features need not be float32."""
        arguments = super().from_config(cfg, input_shape)
        pooler = arguments["pooler"]
        pooler.level_poolers = nn.ModuleList(
            _RoIPool(p.output_size, p.spatial_scale) if type(p) is RoIPool else p
            for p in pooler.level_poolers
        )
        return arguments

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        resnets = cfg.MODEL.RESNETS
        if resnets.DEFORM_ON_PER_STAGE[-1]:
            raise ValueError(
                "MODEL.RESNETS.DEFORM_ON_PER_STAGE asks for a deformable res5, which the C4 head "
                "does not support: set its last entry to False"
            )
        out_channels = resnets.RES2_OUT_CHANNELS * 8
        variant = variant_from_config(cfg)
        blocks = make_resnext_stage(
            variant.blocks_per_stage[-1],
            in_channels=out_channels // 2,
            out_channels=out_channels,
            cardinality=variant.cardinality,
            width=variant.width * 8,
            first_stride=2,
            **block_options_from_config(cfg),
        )
        if cfg.MODEL.BACKBONE.FREEZE_AT >= 5:
            for block in blocks:
                block.freeze()
        recompute = cfg.MODEL.get("RESNEXT", {}).get("CHECKPOINT", False)
        stage = CheckpointedStage if recompute else nn.Sequential
        return stage(*blocks), out_channels
