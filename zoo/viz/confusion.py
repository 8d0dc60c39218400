"""A picture of a confusion matrix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from zoo.viz.figures import new_figure, save_figure

_MAX_NUMBERED = 30


def draw_confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Rows are true classes, columns predicted ones; the colour is the share of the row, the number the count.

    Args:
        matrix: counts ``[C, C]``.
        classes: C names. More than 30 classes are drawn without numbers, and more than 100 without names.

    Raises:
        ValueError: the matrix does not fit the classes.
    """
    matrix = np.asarray(matrix)
    count = len(classes)
    if matrix.shape != (count, count):
        raise ValueError(f"matrix has shape {matrix.shape}; {count} classes need ({count}, {count})")
    totals = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    side = min(max(4.5, 0.5 * count + 2), 16)
    figure = new_figure(side + 0.8, side)
    axes = figure.add_subplot()
    image = axes.imshow(share, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    correct = matrix.trace() / matrix.sum() if matrix.sum() else 0.0
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{int(matrix.sum())} samples, {100 * correct:.2f} % correct")
    if count <= 100:
        names = [c if len(c) <= 18 else c[:15] + "..." for c in classes]
        long = max(map(len, names)) > 3
        size = 9 if count <= _MAX_NUMBERED else 5
        axes.set_xticks(range(count), names, rotation=90 if long else 0, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
    if count <= _MAX_NUMBERED:
        for i, j in zip(*np.nonzero(matrix)):
            axes.text(
                j,
                i,
                str(int(matrix[i, j])),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[i, j] > 0.55 else "#c0262d" if i != j else "black",
            )
    return figure


def save_confusion(matrix: np.ndarray, classes: Sequence[str], path: str | os.PathLike) -> Path:
    """Draw a confusion matrix (:func:`draw_confusion`) into a file."""
    return save_figure(draw_confusion(matrix, classes), path)
