"""Pictures of detections: boxes on images, precision-recall curves, and where a detector's queries look."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from matplotlib.figure import Figure

from zoo.viz.figures import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from zoo.metrics.coco import CocoResult


def colour_of(label: int) -> tuple[int, int, int]:
    """RGB of a class; the same for the same class."""
    text = COLOURS[label % len(COLOURS)]
    return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))  # type: ignore[return-value]


def draw_boxes(
    image: np.ndarray,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of the image with boxes and their names, and masks in translucent colour.

    Args:
        image: RGB uint8 ``[H, W, 3]``; a small one is enlarged, so that names can be read.
        boxes: corners in pixels.
        labels: class of each, which gives the colour.
        names: what is written at each.
        scores: written after the names.
        masks: bool ``[N, H, W]``.

    Raises:
        ValueError: masks of another size than the image, or another number of them than of boxes.
    """
    height, width = image.shape[:2]
    zoom = max(1, round(480 / max(height, width)))
    if masks is not None:
        image = tint(image, masks, labels)
    canvas = (
        cv2.resize(image, (width * zoom, height * zoom), interpolation=cv2.INTER_NEAREST) if zoom > 1 else image.copy()
    )
    line = max(1, round(max(canvas.shape[:2]) / 400))
    size = max(0.4, max(canvas.shape[:2]) / 1600)
    for i in reversed(range(len(boxes))):  # the best lies on top
        colour = colour_of(int(labels[i]))
        x0, y0, x1, y1 = (round(float(v) * zoom) for v in boxes[i])
        cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, line, cv2.LINE_AA)
        text = str(names[i]) if scores is None else f"{names[i]} {float(scores[i]):.2f}"
        text = text.encode("ascii", "replace").decode()
        (w, h), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
        top = y0 if y0 >= h + base else y0 + h + base
        cv2.rectangle(canvas, (x0, top - h - base), (x0 + w, top), colour, -1)
        cv2.putText(
            canvas, text, (x0, top - base // 2), cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 1, cv2.LINE_AA
        )
    return canvas


def tint(image: np.ndarray, masks: np.ndarray, labels: Sequence[int], opacity: float = 0.45) -> np.ndarray:
    """A copy of the image with each mask in its class's colour, the first on top, and its outline.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        masks: bool ``[N, H, W]``.
        labels: class of each, which gives the colour.
        opacity: of the colour, 0 to 1.

    Raises:
        ValueError: masks of another size than the image, or another number of them than of labels.
    """
    if masks.shape != (len(labels), *image.shape[:2]):
        raise ValueError(f"masks have shape {masks.shape}; accepted is {(len(labels), *image.shape[:2])}")
    done = image.astype(np.float32)
    for mask, label in reversed(list(zip(masks, labels))):
        colour = np.array(colour_of(int(label)), np.float32)
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0).astype(bool)
        done[mask] = (1 - opacity) * done[mask] + opacity * colour
        done[mask & ~inner] = colour
    return done.round().astype(np.uint8)


def draw_precision_recall(result: CocoResult, *, most: int = 12) -> Figure:
    """Curves of the mean over classes at several overlaps, and of the ``most`` most frequent classes at 0.5."""
    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    recall = np.linspace(0, 1, result.precision.shape[1])
    with_objects = [k for k, row in enumerate(result.classes) if row.objects > 0]
    for n, threshold in enumerate((0.5, 0.6, 0.7, 0.8, 0.9)):
        at = int(np.abs(result.thresholds - threshold).argmin())
        if with_objects:
            curve = result.precision[at][:, with_objects].clip(min=0).mean(1)
            left.plot(recall, curve, color=COLOURS[n], label=f"IoU {threshold:.1f}: {curve.mean():.3f}")
    shown = sorted(with_objects, key=lambda k: -result.classes[k].objects)[:most]
    at = int(np.abs(result.thresholds - 0.5).argmin())
    for n, k in enumerate(shown):
        row, colour = result.classes[k], COLOURS[n % len(COLOURS)]
        style = "-" if n < len(COLOURS) else "--"
        right.plot(recall, result.precision[at][:, k], style, color=colour, label=f"{row.name}: {row.ap50:.3f}")
    for axes, title in ((left, "all classes"), (right, "classes at IoU 0.5")):
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8, loc="lower left")
    return figure


def save_precision_recall(result: CocoResult, path: str | os.PathLike, *, most: int = 12) -> Path:
    """Draw precision-recall curves (:func:`draw_precision_recall`) into a file."""
    return save_figure(draw_precision_recall(result, most=most), path)


def draw_query_attention(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    *,
    points: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    maps: np.ndarray | None = None,
    columns: int = 3,
) -> Figure:
    """One picture a query: its box, and the points it reads by weight or its attention as heat.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        boxes: ``[N, 4]`` corners in pixels.
        names: a title for each.
        points: ``[N, P, 2]`` x, y in 0 ... 1 of the image, with ``weights`` ``[N, P]``.
        maps: ``[N, h, w]`` attention, instead of points.

    Raises:
        ValueError: there is nothing to draw.
    """
    from matplotlib.patches import Rectangle

    from zoo.viz.attention import overlay

    if not len(boxes) or (points is None) == (maps is None):
        raise ValueError("draw_query_attention needs boxes, and either points with weights or maps")
    height, width = image.shape[:2]
    columns = min(columns, len(boxes))
    rows = -(-len(boxes) // columns)
    figure = new_figure(3.4 * columns, 3.6 * rows * min(2.0, max(0.5, height / width)) + 0.3)
    for n, (box, name) in enumerate(zip(boxes, names)):
        axes = figure.add_subplot(rows, columns, n + 1)
        axes.imshow(image if maps is None else overlay(image, maps[n]))
        if points is not None and weights is not None:
            size = 4 + 60 * weights[n] / max(float(weights[n].max()), 1e-12)
            x, y = points[n, :, 0] * width - 0.5, points[n, :, 1] * height - 0.5
            axes.scatter(x, y, s=size, c=weights[n], cmap="autumn_r", edgecolors="black", linewidths=0.3)
        x0, y0, x1, y1 = box - 0.5
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="#00e5ff", lw=1.8))
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    return figure
