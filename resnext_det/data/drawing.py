"""Drawing objects on images with matplotlib, without a display."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from ..atomic import replacing

COLOURS = ("tab:red", "tab:blue", "tab:green", "tab:purple", "tab:brown", "tab:pink", "black")
MASK_OPACITY = 0.45


@dataclass(frozen=True)
class Shown:
    """An object to draw, in pixels of the image as it is drawn.

    Attributes:
        box: x0, y0, x1, y1.
        class_id: contiguous, from 0; gives the colour.
        label: text at the box.
        polygons: outlines of the mask, each (N, 2) as x, y.
        bitmask: the mask, (H, W) bool, where it is no polygons.
        keypoints: (K, 3) as x, y and 0 (not labelled), 1 (hidden) or 2 (visible).
        crowd: one box for many objects: drawn dashed.
    """

    box: Sequence[float]
    class_id: int
    label: str
    polygons: Sequence[np.ndarray] = ()
    bitmask: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    crowd: bool = False


def class_colour(class_id: int) -> str:
    """Matplotlib's name of a class's colour; colours repeat after `len(COLOURS)` classes."""
    return COLOURS[class_id % len(COLOURS)]


def draw_objects(
    axes: Axes,
    image: np.ndarray,
    objects: Sequence[Shown],
    bones: Sequence[tuple[int, int]] = (),
) -> None:
    """Draw an image and objects on it; x and y run from 0 to its width and height.

    Args:
        axes: where; its ticks are taken away.
        image: (H, W, 3) RGB, uint8.
        objects: what to draw.
        bones: pairs of keypoints to join by a line.
    """
    height, width = image.shape[:2]
    frame = (0, width, height, 0)
    axes.axis("off")
    axes.imshow(image, extent=frame, interpolation="nearest")
    for item in objects:
        colour = class_colour(item.class_id)
        x0, y0, x1, y1 = item.box
        for polygon in item.polygons:
            style = {"facecolor": colour, "edgecolor": "none", "alpha": MASK_OPACITY}
            axes.add_patch(Polygon(polygon, closed=True, **style))
        if item.bitmask is not None:
            layer = np.zeros((height, width, 4))
            layer[item.bitmask] = (*to_rgb(colour), MASK_OPACITY)
            axes.imshow(layer, extent=frame, interpolation="nearest")
        style = {"edgecolor": colour, "linewidth": 1.8, "linestyle": "--" if item.crowd else "-"}
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **style))
        if item.keypoints is not None:
            _draw_keypoints(axes, item.keypoints, bones, colour)
        inside = y0 < 0.04 * height  # else the label would be above the image
        patch = {"boxstyle": "square,pad=0.1", "facecolor": colour, "edgecolor": "none"}
        style = {"fontsize": 7, "color": "white", "bbox": patch, "clip_on": True}
        align = "top" if inside else "bottom"
        axes.text(x0, y0, item.label, va=align, parse_math=False, **style)


def _draw_keypoints(
    axes: Axes, points: np.ndarray, bones: Sequence[tuple[int, int]], colour: str
) -> None:
    for a, b in bones:
        if points[a, 2] > 0 and points[b, 2] > 0:
            axes.plot(points[[a, b], 0], points[[a, b], 1], color=colour, linewidth=1)
    for visibility, fill in ((1, "none"), (2, "white")):
        x, y = points[points[:, 2] == visibility, :2].T
        axes.scatter(x, y, s=14, facecolors=fill, edgecolors=colour, linewidths=1, zorder=3)


def save_figure(figure: Figure, file: Path, dpi: float = 110) -> None:
    """Write a figure as PNG or JPEG, by the name's suffix, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    FigureCanvasAgg(figure)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=dpi, format=file.suffix[1:].lower())
