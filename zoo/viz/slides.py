"""Pictures of slides: how much each patch counts, drawn where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def patch_size(coords: np.ndarray) -> float:
    """Side of the patches, from the smallest distance along x or y of two neighbours; 1 for a single patch."""
    steps = [np.diff(np.unique(axis)) for axis in np.asarray(coords, float).T]
    positive = np.concatenate([s[s > 0] for s in steps]) if steps else np.zeros(0)
    return float(positive.min()) if len(positive) else 1.0


def ranks(values: np.ndarray) -> np.ndarray:
    """Share of the values that each one exceeds, 0 ... 1; equal ones have one rank."""
    unique, inverse = np.unique(np.asarray(values, float), return_inverse=True)
    return inverse / max(len(unique) - 1, 1)


def draw_slide(
    attention: np.ndarray, coords: np.ndarray, *, title: str = "", size: float | None = None, ranked: bool = True
) -> Figure:
    """A heat map of attention over the places of the patches.

    Args:
        attention: ``[N]``.
        coords: ``[N, 2]``, x and y of the upper left corners in pixels of the slide.
        title: above the picture.
        size: side of a patch in these pixels; None takes the smallest distance of two.
        ranked: colours show ranks, since a few patches usually have most of the attention; else the values.

    Raises:
        ValueError: shapes that do not fit, no patches, or numbers that are not finite.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    attention, coords = np.asarray(attention, float), np.asarray(coords, float)
    if attention.ndim != 1 or not len(attention) or coords.shape != (len(attention), 2):
        raise ValueError(f"attention {attention.shape}, coords {coords.shape}: accepted are [N] and [N, 2], N >= 1")
    if not (np.isfinite(attention).all() and np.isfinite(coords).all()):
        raise ValueError("attention or coordinates are not finite numbers")
    side = patch_size(coords) if size is None else float(size)
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    squares = PatchCollection([Rectangle((x, y), side, side) for x, y in coords], cmap="inferno", edgecolor="none")
    squares.set_array(ranks(attention) if ranked else attention)
    axes.add_collection(squares)
    low, high = coords.min(0) - side, coords.max(0) + 2 * side
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(high[1], low[1])  # rows of a slide count downwards
    axes.set_aspect("equal")
    axes.set_xlabel("x (pixels of the slide)")
    axes.set_ylabel("y (pixels of the slide)")
    axes.set_title(title)
    figure.colorbar(squares, ax=axes, label="attention (rank)" if ranked else "attention")
    return figure
