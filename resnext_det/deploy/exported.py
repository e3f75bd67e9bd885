"""A detector as one module of tensors, from image to detections, that exporters can take whole."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torchvision.ops import RoIPool, roi_align, roi_pool

from . import selection
from .folding import fold_norms


class ExportedRCNN(nn.Module):
    """Detectron2's inference for one image, with the layers of a trained detector.

    Input `image`: (H, W, 3) RGB, uint8, 0..255, of the size that the network is to see.

    Outputs: `boxes` (N, 4) float32, x1, y1, x2, y2 in pixels of that image; `scores` (N,) float32,
    best first; `classes` (N,) int64; and of Mask R-CNN `masks` (N, M, M) float32, probabilities
    within the boxes.
    """

    def __init__(self, model: GeneralizedRCNN, image_format: str) -> None:
        """Copy the layers with batch norms folded into convolutions.

        Args:
            model: a detector on the CPU that `require_exportable` takes.
            image_format: colour order that it takes, "RGB" or "BGR".
        """
        super().__init__()
        model = fold_norms(model)
        rpn, heads = model.proposal_generator, model.roi_heads
        self.flips = image_format == "BGR"
        self.backbone = model.backbone
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)
        self.divisibility = max(model.backbone.size_divisibility, 1)
        self.proposals = _Proposals(rpn)
        self.has_masks = bool(heads.mask_on)
        if hasattr(heads, "res5"):
            self.heads = _C4Heads(heads)
        else:
            self.heads = _FPNHeads(heads)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        height, width = image.shape[0], image.shape[1]
        x = image.permute(2, 0, 1)
        if self.flips:
            x = torch.cat((x[2:], x[1:2], x[:1]))
        x = (x.to(torch.float32) - self.pixel_mean) / self.pixel_std
        x = F.pad(x, (0, -width % self.divisibility, 0, -height % self.divisibility))
        features = self.backbone(x[None])
        boxes = self.proposals(features, height, width)
        return self.heads(features, boxes, height, width)


class _Proposals(nn.Module):
    """`RPN` in inference."""

    def __init__(self, rpn: nn.Module) -> None:
        super().__init__()
        self.in_features = rpn.in_features
        self.head = rpn.rpn_head
        self.cells = nn.ParameterList(
            nn.Parameter(c, requires_grad=False) for c in rpn.anchor_generator.cell_anchors
        )
        self.strides = rpn.anchor_generator.strides
        self.offset = rpn.anchor_generator.offset
        self.transform = rpn.box2box_transform
        self.before, self.after = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]
        self.iou, self.min_size = rpn.nms_thresh, rpn.min_box_size

    def forward(self, features: dict[str, Tensor], height: object, width: object) -> Tensor:
        """Boxes (N, 4), best first."""
        logits, deltas = self.head([features[name] for name in self.in_features])
        boxes, scores = [], []
        for level, cells in enumerate(self.cells):
            score = logits[level].permute(0, 2, 3, 1).reshape(-1)
            delta = deltas[level].permute(0, 2, 3, 1).reshape(-1, 4)
            index = selection.top(score, self.before)
            anchors = selection.anchors_at(
                index, logits[level].shape[3], cells, self.strides[level], self.offset
            )
            found = selection.proposals_of_level(
                self.transform.apply_deltas(delta[index], anchors),
                score[index],
                height=height,
                width=width,
                min_size=self.min_size,
                iou=self.iou,
            )
            boxes.append(found[0])
            scores.append(found[1])
        return selection.best(boxes, scores, self.after)


class _Pooler(nn.Module):
    """`ROIPooler`. Boxes come out sorted by level: putting features back in order is a copy."""

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        self.size = pooler.output_size
        first = pooler.level_poolers[0]
        self.scales = [p.spatial_scale for p in pooler.level_poolers]
        self.is_max = isinstance(first, RoIPool)
        self.sampling_ratio = getattr(first, "sampling_ratio", 0)
        self.aligned = getattr(first, "aligned", False)
        self.levels = (pooler.min_level, pooler.max_level)
        self.canonical = (pooler.canonical_box_size, pooler.canonical_level)

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pooled boxes (N, C, size, size), and the number of each one's box; None for in order."""
        if len(features) == 1:
            return self._pool(features[0], boxes, self.scales[0]), None
        levels = selection.levels_of(boxes, *self.levels, *self.canonical)
        members = [torch.nonzero(levels == i)[:, 0] for i in range(len(features))]
        pooled = [
            self._pool(x, boxes[m], scale)
            for x, m, scale in zip(features, members, self.scales, strict=True)
        ]
        return torch.cat(pooled), torch.cat(members)

    def _pool(self, x: Tensor, boxes: Tensor, scale: float) -> Tensor:
        rois = torch.cat((torch.zeros_like(boxes[:, :1]), boxes), dim=1)  # all of image 0
        if self.is_max:
            return roi_pool(x, rois, self.size, scale)
        return roi_align(x, rois, self.size, scale, self.sampling_ratio, self.aligned)


class _Heads(nn.Module):
    """What both kinds of RoI heads share: `FastRCNNOutputLayers.inference` and masks."""

    def __init__(self, heads: nn.Module) -> None:
        super().__init__()
        predictor = heads.box_predictor
        self.predictor = predictor
        self.transform = predictor.box2box_transform
        self.limits = {
            "score": predictor.test_score_thresh,
            "iou": predictor.test_nms_thresh,
            "count": predictor.test_topk_per_image,
        }
        self.mask_head = heads.mask_head if heads.mask_on else None

    def forward(
        self, features: dict[str, Tensor], boxes: Tensor, height: object, width: object
    ) -> tuple[Tensor, ...]:
        """See `ExportedRCNN`."""
        x, order = self.box_features(features, boxes)
        if order is not None:
            boxes = boxes[order]
        logits, deltas = self.predictor(x)
        scores = logits.sigmoid() if self.predictor.use_sigmoid_ce else logits.softmax(dim=-1)
        boxes = self.transform.apply_deltas(deltas, boxes)
        found = selection.detections(boxes, scores, height=height, width=width, **self.limits)
        if self.mask_head is None:
            return found
        return *found, self._masks(features, found[0], found[2])

    def _masks(self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor) -> Tensor:
        x, order = self.mask_features(features, boxes)
        logits = self.mask_head.layers(x)
        if order is not None:
            logits = logits[order.argsort()]
        if logits.shape[1] == 1:
            return logits[:, 0].sigmoid()
        return logits[torch.arange(boxes.shape[0]), classes].sigmoid()


class _FPNHeads(_Heads):
    """`StandardROIHeads`."""

    def __init__(self, heads: nn.Module) -> None:
        super().__init__(heads)
        self.box_in_features = heads.box_in_features
        self.box_pooler = _Pooler(heads.box_pooler)
        self.box_head = heads.box_head
        if heads.mask_on:
            self.mask_in_features = heads.mask_in_features
            self.mask_pooler = _Pooler(heads.mask_pooler)

    def box_features(self, features: dict[str, Tensor], boxes: Tensor) -> tuple:
        x, order = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        return self.box_head(x), order

    def mask_features(self, features: dict[str, Tensor], boxes: Tensor) -> tuple:
        return self.mask_pooler([features[name] for name in self.mask_in_features], boxes)


class _C4Heads(_Heads):
    """`Res5ROIHeads`, this package's too."""

    def __init__(self, heads: nn.Module) -> None:
        super().__init__(heads)
        self.in_features = heads.in_features
        self.pooler = _Pooler(heads.pooler)
        self.res5 = heads.res5

    def box_features(self, features: dict[str, Tensor], boxes: Tensor) -> tuple:
        x, order = self.mask_features(features, boxes)
        return x.mean(dim=(2, 3)), order

    def mask_features(self, features: dict[str, Tensor], boxes: Tensor) -> tuple:
        x, order = self.pooler([features[name] for name in self.in_features], boxes)
        return self.res5(x), order
