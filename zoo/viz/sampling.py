"""Drawings of where a mixer looks (:mod:`zoo.mixers.sampling`) on the image."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from zoo.mixers.sampling import Boxes, Drawing, Heats, Points, Routes
from zoo.viz.attention import overlay
from zoo.viz.figures import COLOURS

_AGENTS = 4  # the most read ones are drawn
_LIGHT = "#00e5ff"


def draw_sampling(axes: Axes, image: np.ndarray, drawings: list[Drawing]) -> None:
    """Draw on axes: windows as frames, routed regions as frames by weight, agents as heat, points by weight.

    Args:
        axes: of matplotlib.
        image: RGB uint8 ``[H, W, 3]``.
        drawings: what :meth:`zoo.mixers.base.Mixer.sampling` gave; none leaves the image.
    """
    height, width = image.shape[:2]
    picture = image
    for drawing in drawings:
        if isinstance(drawing, Heats):
            strongest = drawing.weights.topk(min(_AGENTS, len(drawing.weights)))
            share = strongest.values / strongest.values.sum().clamp_min(1e-12)
            maps = drawing.maps[strongest.indices]
            picture = overlay(picture, (maps / maps.amax((1, 2), keepdim=True) * share[:, None, None]).sum(0).numpy())
    axes.imshow(picture)
    axes.set_axis_off()
    for drawing in drawings:
        if isinstance(drawing, Boxes):
            for box in drawing.boxes:
                _frame(axes, box, height, width, _LIGHT, 0.9)
        elif isinstance(drawing, Routes):
            largest = float(drawing.weights.max())
            for box, weight in zip(drawing.targets, drawing.weights.tolist()):
                _frame(axes, box, height, width, COLOURS[3], 1.0 + 2.5 * weight / max(largest, 1e-12))
            _frame(axes, drawing.source, height, width, _LIGHT, 2.2)
        elif isinstance(drawing, Points):
            size = 6 + 60 * drawing.weights / drawing.weights.max().clamp_min(1e-12)
            y, x = drawing.points.T
            axes.scatter(x * width - 0.5, y * height - 0.5, s=size.numpy(), c=_LIGHT, edgecolors="black", lw=0.5)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def _frame(axes: Axes, box: Tensor, height: int, width: int, colour: str, line: float) -> None:
    top, left, bottom, right = (box * box.new_tensor([height, width, height, width]) - 0.5).tolist()
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=line))
