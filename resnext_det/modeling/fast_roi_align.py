"""RoIAlign for CPUs: all levels at once, on all threads, forward and backward.

torchvision's kernel runs its backward pass, and for few boxes its forward pass, on one thread, and
walks over channels in the innermost loop only after it has chosen a bin. RoIAlign is linear in the
features: every bin is a weighted sum of some pixels, the same for all channels. With channels_last
rows of (pixels, C) that is PyTorch's `embedding_bag`, which is vectorised over C and parallel over
bins. Its transpose, the backward pass, is another `embedding_bag` over the bins of each pixel. The
weights of a bin are the outer product of weights along y and x; samples that share pixels are
merged first, so that a bin of 4 x 4 samples reads about 6 x 6 pixels and not 64.
"""

import dataclasses
import threading
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# pixels that all bins read, some 10 million in a large batch; with more torchvision needs less
# memory and time
_MAX_ENTRIES = 2**24
# without gradients, at a time, so that the memory of one round serves the next
_BOXES = 256
_BLOCK = 1024  # pixels
_memory = threading.local()


@dataclasses.dataclass
class _Axis:
    """Along y or x, the pixels that every bin of every box reads; n bins, at most k pixels each.

    A slice of it is that of some boxes.

    Attributes:
        first: (M, n) int64, the first pixel.
        count: (M, n) int64, the number of pixels.
        weights: (M, n, k) float32, zero beyond `count`.
    """

    first: Tensor
    count: Tensor
    weights: Tensor

    def __getitem__(self, boxes: slice) -> "_Axis":
        return _Axis(self.first[boxes], self.count[boxes], self.weights[boxes])


def _sample_axis(start: Tensor, length: Tensor, size: Tensor, bins: int, grid: Tensor) -> _Axis:
    """Merge the bilinear weights of a bin's samples, as torchvision places them.

    Args:
        start, length: (M,) of the boxes, in pixels of their level.
        size: (M,) pixels that the level has.
        bins: number of output bins.
        grid: (M,) samples per bin.
    """
    most = max(int(grid.max()), 1)
    steps = torch.arange(most, device=start.device)
    bin_length = (length / bins)[:, None, None]
    where = torch.arange(bins, device=start.device)[:, None] * bin_length
    inside = (steps + 0.5) * bin_length / grid.clamp(min=1)[:, None, None]
    position = start[:, None, None] + where + inside  # (M, bins, most)
    last = (size - 1)[:, None, None]
    used = (steps < grid[:, None, None]) & (position >= -1) & (position <= last + 1)
    position = torch.minimum(position.clamp(min=0), last.to(position.dtype))
    low = position.long()
    high = torch.minimum(low + 1, last)
    first = torch.where(used, low, size[:, None, None]).amin(2)
    count = torch.where(used, high + 1, first[..., None]).amax(2) - first

    weights = position.new_zeros(*first.shape, max(int(count.max()), 1))
    fraction = position - low
    origin = torch.where(used, first[..., None], low)
    weights.scatter_add_(2, low - origin, (1 - fraction) * used)
    weights.scatter_add_(2, torch.where(used, high - origin, 0), fraction * used)
    return _Axis(first, count, weights)


def _sampling(boxes: Tensor, scale: Tensor, bins: tuple[int, int], ratio: int, aligned: bool):
    """Corner and size of boxes (M, 5) in pixels of their level as (y, x), and samples per bin."""
    offset = 0.5 if aligned else 0.0
    corners = boxes[:, 1:] * scale[:, None] - offset
    start = corners[:, [1, 0]]
    length = corners[:, [3, 2]] - start
    if not aligned:
        length = length.clamp(min=1.0)
    if ratio > 0:
        grid = torch.full_like(length, ratio).long()
    else:
        grid = (length / length.new_tensor(bins)).ceil().long()
    return start, length, grid


def _expand(y: _Axis, x: _Axis, base: Tensor, width: Tensor, share: Tensor) -> tuple[Tensor, ...]:
    """List every bin's pixels: (entries,) pixel numbers, (entries,) weights, (bins + 1,) offsets.

    Args:
        y, x: pixels and weights along the axes, of M boxes.
        base: (M,) number of the box's first pixel of the image in its level.
        width: (M,) pixels in a row of that level.
        share: (M,) factor of all weights.
    """
    across = x.count[:, None, :].expand(-1, y.count.shape[1], -1)
    down = y.count[:, :, None].expand_as(across)
    offsets = F.pad((down * across).flatten().cumsum(0), (1, 0))

    # rows of pixels: one for each bin and each of its pixels along y
    down = down.flatten()
    cell = torch.arange(len(down), device=base.device).repeat_interleave(down)
    k = torch.arange(len(cell), device=base.device) - (down.cumsum(0) - down)[cell]
    box = cell // across[0].numel()
    bin_y = cell // across.shape[2]
    bin_x = box * across.shape[2] + cell % across.shape[2]
    length = x.count.flatten()[bin_x]
    begin = length.cumsum(0) - length
    pixel = base[box] + (y.first.flatten()[bin_y] + k) * width[box] + x.first.flatten()[bin_x]
    weight = y.weights.flatten()[bin_y * y.weights.shape[2] + k] * share[box]

    row = torch.arange(len(cell), device=base.device).repeat_interleave(length)
    entry = torch.arange(len(row), device=base.device)
    pixels = (pixel - begin)[row] + entry
    weights = x.weights.flatten()[(bin_x * x.weights.shape[2] - begin)[row] + entry]
    return pixels, weights.mul_(weight[row]), offsets


def _pixels_of(features: Sequence[Tensor], kind: torch.dtype) -> Tensor:
    """All maps (N, C, H, W) as rows of pixels (sum of N * H * W, C), level by level.

    They stay valid until this thread's next call, which writes to the same memory: to get 80 MB
    from the system takes longer than to fill them.
    """
    channels = features[0].shape[1]
    count = sum(f.numel() for f in features)
    memory = getattr(_memory, "rows", None)
    if memory is None or memory.dtype != kind or len(memory) < count:
        with torch.inference_mode(False):  # else it could be used in that mode alone
            memory = _memory.rows = torch.empty(count, dtype=kind, device="cpu")
    rows = memory[:count].view(-1, channels)
    images = [image.flatten(1).t() for f in features for image in f]
    for target, image in zip(rows.split([len(i) for i in images]), images, strict=True):
        # where channels come first, blocks that stay in the cache are twice as fast
        for some, pixels in zip(target.split(_BLOCK), image.split(_BLOCK), strict=True):
            some.copy_(pixels)
    return rows


class _WeightedSums(torch.autograd.Function):
    """out[i] = sum of weights[j] * rows[indices[j]] for j in offsets[i] : offsets[i + 1]."""

    @staticmethod
    def forward(ctx, rows: Tensor, indices: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(indices, weights, offsets)
        ctx.num_rows = len(rows)
        return _bags(rows, indices, weights, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        indices, weights, offsets = ctx.saved_tensors
        ordered, order = indices.sort(stable=True)
        starts = torch.arange(ctx.num_rows + 1, device=ordered.device, dtype=ordered.dtype)
        transposed = torch.searchsorted(ordered, starts)
        out = torch.arange(len(offsets) - 1, device=ordered.device)
        out = out.repeat_interleave(offsets.diff())
        return _bags(grad, out[order], weights[order], transposed), None, None, None


def _bags(rows: Tensor, indices: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    return F.embedding_bag(
        indices,
        rows.contiguous(),
        offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor | None:
    """Pool each box from its level, as `torchvision.ops.roi_align` does, up to rounding.

    Args:
        features: a map (N, C, H, W) per level. Below float32, sums are taken in float32.
        boxes: (M, 5) float32, image number and x1, y1, x2, y2 in pixels of the image.
        levels: (M,) int64, indices into `features`.
        output_size: bins along y and x.
        scales: per level, its pixels per pixel of the image, e.g. 1 / 4.
        sampling_ratio: samples per bin and axis; 0 takes as many as the bin has pixels.
        aligned: shift by half a pixel, as ROIAlignV2 does.

    Returns:
        (M, C, *output_size) in the features' type and memory format; None for boxes so large that
        their weights would take gigabytes.
    """
    kind = features[0].dtype
    exact = torch.promote_types(kind, torch.float32)
    shapes = torch.tensor([(f.shape[2], f.shape[3]) for f in features]).to(boxes.device)
    area = shapes.prod(1)
    begin = F.pad((area * features[0].shape[0]).cumsum(0), (1, 0))
    channels = features[0].shape[1]
    learns = torch.is_grad_enabled() and any(f.requires_grad for f in features)
    if len(boxes) == 0:
        nothing = features[0].new_zeros(0, channels, *output_size)
        return nothing + 0 * sum(f.sum() for f in features) if learns else nothing

    with torch.no_grad():
        scale = torch.tensor(scales, dtype=exact).to(boxes.device)[levels]
        start, length, grid = _sampling(
            boxes.to(exact), scale, output_size, sampling_ratio, aligned
        )
        if int(grid.max()) * max(output_size) * len(boxes) > _MAX_ENTRIES:
            return None
        size = shapes[levels]
        y, x = (
            _sample_axis(start[:, i], length[:, i], size[:, i], output_size[i], grid[:, i])
            for i in (0, 1)
        )
        if int((y.count.sum(1) * x.count.sum(1)).sum()) > _MAX_ENTRIES:
            return None
        base = begin[levels] + boxes[:, 0].long() * area[levels]
        share = 1 / grid.prod(1).clamp(min=1).to(exact)
    is_last = features[0].is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_last else torch.contiguous_format
    whole = (y, x, base, size[:, 1], share)
    if learns:
        rows = torch.cat([f.permute(0, 2, 3, 1).reshape(-1, channels) for f in features])
        with torch.no_grad():
            entries = _expand(*whole)
        out = _WeightedSums.apply(rows.to(exact), *entries)
        out = out.to(kind).view(len(boxes), *output_size, channels).permute(0, 3, 1, 2)
        return out.contiguous(memory_format=layout)
    rows = _pixels_of(features, exact)
    out = torch.empty(len(boxes), channels, *output_size, dtype=kind, memory_format=layout)
    for start in range(0, len(boxes), _BOXES):
        some = slice(start, start + _BOXES)
        bags = _bags(rows, *_expand(*(each[some] for each in whole)))
        out[some] = bags.view(-1, *output_size, channels).permute(0, 3, 1, 2)
    return out


class FastROIPooler(ROIPooler):
    """`ROIPooler` whose levels are all `ROIAlign`, pooled in one go on a CPU.

    Boxes stay float32 where features are bfloat16; Detectron2 rounds them to the features' type,
    which moves them by pixels. Elsewhere, and in tracing, it is Detectron2's own.
    """

    def forward(self, x: list[Tensor], box_lists: list) -> Tensor:
        """See `ROIPooler.forward`."""
        untraced = not (torch.jit.is_tracing() or torch.compiler.is_compiling())
        pooled = None
        if untraced and x[0].device.type == "cpu" and len(box_lists) == len(x[0]) > 0:
            pooled = self._pool(x, box_lists)
        if pooled is not None:
            return pooled
        if x[0].device.type == "cpu" and x[0].dtype != torch.float64:  # no half precision there
            return super().forward([f.float() for f in x], box_lists).to(x[0].dtype)
        return super().forward(x, box_lists)

    def _pool(self, x: list[Tensor], box_lists: list) -> Tensor | None:
        boxes = convert_boxes_to_pooler_format(box_lists)
        levels = torch.zeros(len(boxes), dtype=torch.int64)
        if len(x) > 1:
            levels = assign_boxes_to_levels(
                box_lists,
                self.min_level,
                self.max_level,
                self.canonical_box_size,
                self.canonical_level,
            )
        poolers: nn.ModuleList = self.level_poolers
        return roi_align(
            x,
            boxes,
            levels,
            self.output_size,
            [p.spatial_scale for p in poolers],
            poolers[0].sampling_ratio,
            poolers[0].aligned,
        )
