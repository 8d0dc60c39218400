"""Figures that are drawn without a display or pyplot's global state, and written whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from zoo.files import write_file

#: One colour a series, apart in hue and in lightness.
COLOURS = ("#1f5fa8", "#d1495b", "#2e8b57", "#e08e0b", "#6a4c93", "#00798c", "#8d6e63", "#5c6770")
GOOD, BAD, MUTED = "#1b7f3b", "#c0262d", "#5c6770"


def new_figure(width: float, height: float) -> Figure:
    """A white figure of ``width`` x ``height`` inches whose axes arrange themselves."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int = 120) -> Path:
    """Write a figure in the format that the file name ends with (png, jpg, pdf, svg)."""
    path = Path(path)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lstrip(".").lower() or "png", dpi=dpi)
    return write_file(path, content.getvalue())
