"""ResNeXt stages made of Detectron2's blocks, and the backbone that is registered for them.

Parameter names are those of Detectron2's `ResNet` (`stem.conv1`, `res2.0.conv1.norm.weight`, ...),
so checkpoints pass both ways.
"""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ResNet
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, DeformBottleneckBlock
from torch import nn

from ..variants import Variant
from .blocks import (
    FORMS,
    AggregatedBlock,
    ConcatenatedBlock,
    PlainBottleneckBlock,
    last_norm,
)
from .checkpointing import CheckpointedStage

STAGES = ("res2", "res3", "res4", "res5")


def make_resnext_stage(
    num_blocks: int,
    *,
    in_channels: int,
    out_channels: int,
    cardinality: int,
    width: int,
    first_stride: int,
    norm: str = "BN",
    stride_in_1x1: bool = False,
    dilation: int = 1,
    form: str = "c",
    residual: bool = True,
    zero_init_residual: bool = False,
    deform: bool = False,
    deform_modulated: bool = False,
    deform_num_groups: int = 1,
) -> list[CNNBlockBase]:
    """Build one stage of bottleneck blocks.

    Args:
        num_blocks: number of blocks.
        in_channels: channels of the stage's input.
        out_channels: channels of every block's output.
        cardinality: C, the number of paths.
        width: d, channels of one path in this stage.
        first_stride: stride of the first block, 1 or 2.
        norm: a name that `detectron2.layers.get_norm` knows.
        stride_in_1x1: put the stride into the first 1x1 layer (MSRA's ResNets) and not into the
            3x3 layer (Section 4, and every ResNeXt).
        dilation: of the 3x3 layer.
        form: "a", "b" or "c" of Fig. 3; the three compute the same, (c) fastest.
        residual: False leaves out every shortcut (Section 5.1, "Residual connections").
        zero_init_residual: start the last norm of each block at zero (Goyal et al. 2017, 5.1), so
            that a network trained from scratch starts as identities. Weights from a file win.
            Without shortcuts it has no effect.
        deform: use deformable 3x3 layers; needs Detectron2's compiled extension.
        deform_modulated: modulated deformable convolution (DCNv2).
        deform_num_groups: groups of offsets in a deformable layer.

    Returns:
        The blocks; each maps (N, C_in, H, W) to (N, out_channels, H / stride, W / stride).

    Raises:
        ValueError: for an unknown form, a norm that forms a and b cannot split, or deformable
            layers in another form or without shortcuts.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r} is not one of {', '.join(FORMS)}")
    if norm == "GN" and (cardinality * width % 32 or out_channels % 32):
        raise ValueError(
            f"norm GN has 32 groups, which do not divide the {cardinality}x{width}d stage's "
            f"{cardinality * width} or {out_channels} channels"
        )
    if zero_init_residual and not norm:
        raise ValueError("zero_init_residual needs a norm, and norm is empty")
    if deform and (form != "c" or not residual):
        raise ValueError(f"deformable layers need form c and shortcuts: {form=}, {residual=}")
    options = {}
    if deform:
        block_class = DeformBottleneckBlock
        options = {"deform_modulated": deform_modulated, "deform_num_groups": deform_num_groups}
    elif form == "c":
        block_class = BottleneckBlock if residual else PlainBottleneckBlock
    else:
        block_class = AggregatedBlock if form == "a" else ConcatenatedBlock
        options = {"residual": residual}
    blocks = ResNet.make_stage(
        block_class,
        num_blocks,
        in_channels=in_channels,
        out_channels=out_channels,
        bottleneck_channels=cardinality * width,
        stride_per_block=[first_stride] + [1] * (num_blocks - 1),
        num_groups=cardinality,
        norm=norm,
        stride_in_1x1=stride_in_1x1,
        dilation=dilation,
        **options,
    )
    if zero_init_residual and residual:
        for block in blocks:
            nn.init.zeros_(last_norm(block).weight)
    return blocks


class ResNeXt(ResNet):
    """ResNeXt (Xie et al., CVPR 2017) as a Detectron2 backbone; Table 1 gives its layers.

    Input: (N, in_channels, H, W), normalised as the weights expect, H and W multiples of 32 or
    padded so. Output: a dict with the `out_features` of

    | key    | channels              | stride |
    |--------|-----------------------|--------|
    | stem   | stem_out_channels     | 4      |
    | res2   | res2_out_channels     | 4      |
    | res3   | 2 * res2_out_channels | 8      |
    | res4   | 4 * res2_out_channels | 16     |
    | res5   | 8 * res2_out_channels | 32, or 16 with res5_dilation=2 |
    | linear | num_classes (shape (N, num_classes), logits) | |
    """

    def __init__(
        self,
        depth: int = 50,
        cardinality: int = 32,
        width: int = 4,
        *,
        in_channels: int = 3,
        stem_out_channels: int = 64,
        res2_out_channels: int = 256,
        norm: str = "BN",
        stride_in_1x1: bool = False,
        res5_dilation: int = 1,
        form: str = "c",
        residual: bool = True,
        zero_init_residual: bool = False,
        deform_on_per_stage: Sequence[bool] = (False, False, False, False),
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        checkpoint: bool = False,
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            depth: number of layers; see `resnext_det.variants.BLOCKS_PER_STAGE`.
            cardinality: C, the number of groups in every 3x3 layer; 1 gives a ResNet.
            width: d, channels per group in res2; doubles per stage.
            in_channels: channels of the input image.
            stem_out_channels: channels of the 7x7 layer.
            res2_out_channels: output channels of res2's blocks (256 in the paper).
            norm: a name that `detectron2.layers.get_norm` knows: BN, FrozenBN, SyncBN, GN, ...
            stride_in_1x1: see `make_resnext_stage`; True only for MSRA's ResNets.
            res5_dilation: 1, or 2 for a dilated res5 of stride 1 (DC5).
            form: "a", "b" or "c" of Fig. 3; see `make_resnext_stage`.
            residual: False leaves out every shortcut.
            zero_init_residual: see `make_resnext_stage`.
            deform_on_per_stage: for res2..res5, whether to use deformable 3x3 layers.
            deform_modulated: see `make_resnext_stage`.
            deform_num_groups: see `make_resnext_stage`.
            checkpoint: recompute activations in the backward pass; see `CheckpointedStage`.
            num_classes: classes of a linear classifier on res5; None for a bare backbone.
            out_features: keys of the output; None for the last layer. Stages after the last one
                named are not built.
            freeze_at: 0 freezes nothing, 1 the stem, 2 also res2, ... 5 everything.

        Raises:
            ValueError: for an impossible variant, form or res5_dilation.
        """
        if res5_dilation not in (1, 2):
            raise ValueError(f"res5_dilation {res5_dilation} is not 1 or 2")
        if freeze_at not in range(6):
            raise ValueError(f"freeze_at {freeze_at} is not in 0..5")
        variant = Variant(depth, cardinality, width)
        stages = []
        channels = stem_out_channels
        for index, name in enumerate(STAGES):
            dilation = res5_dilation if name == "res5" else 1
            out_channels = res2_out_channels * 2**index
            stages.append(
                make_resnext_stage(
                    variant.blocks_per_stage[index],
                    in_channels=channels,
                    out_channels=out_channels,
                    cardinality=cardinality,
                    width=width * 2**index,
                    first_stride=1 if name == "res2" or dilation == 2 else 2,
                    norm=norm,
                    stride_in_1x1=stride_in_1x1,
                    dilation=dilation,
                    form=form,
                    residual=residual,
                    zero_init_residual=zero_init_residual,
                    deform=deform_on_per_stage[index],
                    deform_modulated=deform_modulated,
                    deform_num_groups=deform_num_groups,
                )
            )
            channels = out_channels
        super().__init__(
            BasicStem(in_channels=in_channels, out_channels=stem_out_channels, norm=norm),
            stages,
            num_classes=num_classes,
            out_features=None if out_features is None else list(out_features),
            freeze_at=freeze_at,
        )
        self.variant = variant
        if checkpoint:
            checkpoint_stages(self)


def checkpoint_stages(network: ResNet) -> None:
    """Let a network's stages recompute their activations, in place; see `CheckpointedStage`."""
    network.stages = [CheckpointedStage(*stage) for stage in network.stages]
    for name, stage in zip(network.stage_names, network.stages, strict=True):
        setattr(network, name, stage)


def variant_from_config(cfg: CfgNode) -> Variant:
    """The variant that `MODEL.RESNETS` names.

    Raises:
        ValueError: for a depth without a known layout, or C or d below 1.
    """
    resnets = cfg.MODEL.RESNETS
    return Variant(resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP)


def block_options_from_config(cfg: CfgNode) -> dict:
    """The arguments of `make_resnext_stage` that a config sets for every stage alike.

    Form and shortcuts are our own keys, `MODEL.RESNEXT.FORM` and `.RESIDUAL`; a stock Detectron2
    config has neither and gets form (c) with shortcuts. With a trained batch norm (BN, SyncBN) the
    last norm of each block starts at zero, which only matters where no weights are loaded.
    """
    own = cfg.MODEL.get("RESNEXT", {})
    norm = cfg.MODEL.RESNETS.NORM
    return {
        "norm": norm,
        "stride_in_1x1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        "form": own.get("FORM", "c"),
        "residual": own.get("RESIDUAL", True),
        "zero_init_residual": norm.endswith("BN") and norm != "FrozenBN",
    }


@BACKBONE_REGISTRY.register()
def build_resnext_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNeXt:
    """Build a `ResNeXt` from Detectron2's keys under `MODEL.RESNETS`, and ours if they are set.

    Args:
        cfg: a Detectron2 config.
        input_shape: its `channels` is the number of image channels.

    Raises:
        ValueError: if the config names no possible network.
    """
    variant = variant_from_config(cfg)
    resnets = cfg.MODEL.RESNETS
    return ResNeXt(
        variant.depth,
        variant.cardinality,
        variant.width,
        in_channels=input_shape.channels,
        stem_out_channels=resnets.STEM_OUT_CHANNELS,
        res2_out_channels=resnets.RES2_OUT_CHANNELS,
        res5_dilation=resnets.RES5_DILATION,
        deform_on_per_stage=resnets.DEFORM_ON_PER_STAGE,
        deform_modulated=resnets.DEFORM_MODULATED,
        deform_num_groups=resnets.DEFORM_NUM_GROUPS,
        checkpoint=cfg.MODEL.get("RESNEXT", {}).get("CHECKPOINT", False),
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        **block_options_from_config(cfg),
    )
