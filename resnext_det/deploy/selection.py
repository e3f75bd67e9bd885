"""The selection of boxes as functions of tensors, for graphs of any image size and box count.

Each follows the function of Detectron2 that it names, and gives its results; shapes are never
turned into Python numbers, so that tracing and `torch.export` keep them free.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

Size = int | Tensor | torch.SymInt  # a side of an image: a tensor while traced


def clip(boxes: Tensor, height: Size, width: Size) -> Tensor:
    """`Boxes.clip` of (..., 4) boxes x1, y1, x2, y2."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    x = (x1.clamp(min=0, max=width), x2.clamp(min=0, max=width))
    y = (y1.clamp(min=0, max=height), y2.clamp(min=0, max=height))
    return torch.stack((x[0], y[0], x[1], y[1]), dim=-1)


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest of (N,) scores, best first; of all where N is smaller."""
    size = scores.shape[0]
    if isinstance(size, Tensor):  # while traced
        return scores.topk(torch.clamp(size, max=count), dim=0)[1]
    return scores.topk(torch.sym_min(size, count), dim=0)[1]


def anchors_at(index: Tensor, width: Size, cells: Tensor, stride: int, offset: float) -> Tensor:
    """The anchors of `DefaultAnchorGenerator` at some indices, (N, 4) of a level's H * W * A.

    Args:
        index: (N,) int64.
        width: of the level's map.
        cells: (A, 4) anchors around the origin.
        stride: of the level, in pixels.
        offset: of the first centre from the image's corner, in strides.
    """
    place = torch.div(index, cells.shape[0], rounding_mode="floor")
    y = torch.div(place, width, rounding_mode="floor")
    x = place - y * width
    shift = (torch.stack((x, y, x, y), dim=1).to(cells.dtype) + offset) * stride
    return cells[index - place * cells.shape[0]] + shift


def proposals_of_level(
    boxes: Tensor, scores: Tensor, *, height: Size, width: Size, min_size: float, iou: float
) -> tuple[Tensor, Tensor]:
    """What `find_top_rpn_proposals` does in a level after its top-k.

    Boxes or scores that are not finite, and boxes without area, are removed; then NMS. Levels are
    apart as in Detectron2's way for more than 1,000 boxes; with fewer it moves levels far from each
    other and runs NMS once, which differs by rounding alone.

    Args:
        boxes: (N, 4).
        scores: (N,) logits.
        min_size: a side of a box is longer, in pixels.
        iou: overlap at which the lower score goes.

    Returns:
        Boxes (M, 4), within the image, and scores (M,), best first.
    """
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
    boxes = clip(boxes, height, width)
    large = (boxes[:, 2:] - boxes[:, :2] > min_size).all(dim=1)
    usable = torch.nonzero(finite & large)[:, 0]
    boxes, scores = boxes[usable], scores[usable]
    kept = nms(boxes, scores, iou)
    return boxes[kept], scores[kept]


def best(boxes: Sequence[Tensor], scores: Sequence[Tensor], count: int) -> Tensor:
    """The `count` boxes with the highest scores of all levels, best first."""
    order = torch.cat(list(scores)).sort(descending=True)[1][:count]
    return torch.cat(list(boxes))[order]


def detections(
    boxes: Tensor,
    scores: Tensor,
    *,
    height: Size,
    width: Size,
    score: float,
    iou: float,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`fast_rcnn_inference_single_image`.

    Args:
        boxes: (N, K * 4), or (N, 4) for all classes.
        scores: (N, K + 1), the last one of the background.
        score: detections have more.
        iou: overlap at which the lower score of the same class goes.
        count: detections at most; all where negative.

    Returns:
        Boxes (M, 4), scores (M,) and classes (M,) int64, best first.
    """
    num_classes = scores.shape[1] - 1
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    scores = scores[:, :-1]
    row, label = torch.nonzero((scores > score) & finite[:, None]).unbind(1)
    boxes = clip(boxes.reshape(-1, boxes.shape[1] // 4, 4), height, width)
    boxes = boxes[row, label] if boxes.shape[1] == num_classes else boxes[row, 0]
    scores = scores[row, label]
    # classes move apart, as in torchvision's batched_nms; the zero is for images without boxes
    farthest = torch.cat((boxes.flatten(), boxes.new_zeros(1))).max()
    offsets = label.to(boxes.dtype) * (farthest + 1)
    kept = nms(boxes + offsets[:, None], scores, iou)
    if count >= 0:
        kept = kept[:count]
    return boxes[kept], scores[kept], label[kept]


def levels_of(
    boxes: Tensor, lowest: int, highest: int, canonical_size: int, canonical_level: int
) -> Tensor:
    """`assign_boxes_to_levels`: (N,) int64, from 0."""
    sides = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    level = torch.floor(canonical_level + torch.log2(sides / canonical_size + 1e-8))
    return level.clamp(min=lowest, max=highest).to(torch.int64) - lowest
