"""A picture of images with what was predicted for them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from zoo.viz.figures import BAD, GOOD, MUTED, new_figure, save_figure


@dataclass(frozen=True)
class Prediction:
    """An image, the best classes with their scores, and the true class where it is known.

    Attributes:
        image: RGB uint8 ``[H, W, 3]``.
        labels: names of the predicted classes, best first.
        scores: their scores between 0 and 1.
        truth: the true class, or None.
        title: a line above (a file name), or None.
    """

    image: np.ndarray
    labels: Sequence[str]
    scores: Sequence[float]
    truth: str | None = None
    title: str | None = None


def draw_predictions(predictions: Sequence[Prediction], *, columns: int = 6, topk: int = 3) -> Figure:
    """A grid of images with score bars; the best class is green or red where the true class is known.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not predictions:
        raise ValueError("there are no predictions to draw")
    if columns < 1 or topk < 1:
        raise ValueError(f"columns={columns} and topk={topk} must be at least 1")
    columns = min(columns, len(predictions))
    rows = math.ceil(len(predictions) / columns)
    bars = min(topk, max(len(p.labels) for p in predictions))
    figure = new_figure(2.2 * columns, (2.5 + 0.24 * bars) * rows)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[2.2, 0.24 * bars + 0.05] * rows)
    for i, prediction in enumerate(predictions):
        row, column = divmod(i, columns)
        _draw_image(figure.add_subplot(grid[2 * row, column]), prediction)
        _draw_bars(figure.add_subplot(grid[2 * row + 1, column]), prediction, bars)
    return figure


def save_predictions(
    predictions: Sequence[Prediction], path: str | os.PathLike, *, columns: int = 6, topk: int = 3
) -> Path:
    """Draw predictions (:func:`draw_predictions`) into a file."""
    return save_figure(draw_predictions(predictions, columns=columns, topk=topk), path)


def _draw_image(axes, prediction: Prediction) -> None:
    small = max(prediction.image.shape[:2]) < 128
    axes.imshow(prediction.image, interpolation="nearest" if small else "antialiased")
    axes.set_axis_off()
    lines = [_shorten(prediction.title, 28)] if prediction.title else []
    colour = "black"
    if prediction.truth is not None:
        right = bool(prediction.labels) and prediction.labels[0] == prediction.truth
        colour = GOOD if right else BAD
        lines.append(_shorten(prediction.truth if right else f"true: {prediction.truth}", 28))
    axes.set_title("\n".join(lines), fontsize=8, color=colour)


def _draw_bars(axes, prediction: Prediction, count: int) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(count - 0.5, -0.5)
    for i, (label, score) in enumerate(list(zip(prediction.labels, prediction.scores))[:count]):
        colour = MUTED
        if prediction.truth is not None and i == 0:
            colour = GOOD if label == prediction.truth else BAD
        elif label == prediction.truth:
            colour = GOOD
        axes.barh(i, 1.0, height=0.86, color="#eef1f4")
        axes.barh(i, min(max(float(score), 0.0), 1.0), height=0.86, color=colour, alpha=0.35)
        axes.text(0.02, i, _shorten(str(label), 20), va="center", fontsize=7.5)
        axes.text(0.98, i, f"{100 * float(score):.1f} %", va="center", ha="right", fontsize=7.5)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
