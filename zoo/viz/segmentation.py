"""Pictures of masks: label maps and segments over images, with a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from zoo.segmentation.palettes import VOID

#: Longer side of a picture at most; larger images are shrunk before they are drawn on.
MAX_SIDE = 4096
_MIN_SIDE = 480
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK = (30, 30, 30)


def draw_label_map(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    *,
    opacity: float = 0.5,
    legend: bool = True,
    max_side: int = MAX_SIDE,
) -> np.ndarray:
    """An image under the colours of its classes, with a legend of those that are there.

    Args:
        image: RGB uint8 ``[H, W, 3]``; a small one is enlarged, one with a side above ``max_side`` shrunk.
        labels: class indices ``[H, W]``; others than those of ``names`` (the ignore index) leave the image as it is.
        names: of the classes.
        palette: their colours.
        opacity: of the colours, 0 to 1.
        legend: add it: beside tall images, below wide ones.
        max_side: of the picture without the legend, in pixels.

    Returns:
        RGB uint8.

    Raises:
        ValueError: labels of another size than the image, fewer colours than names, an opacity outside of 0 to 1.
    """
    _check(image, labels, opacity, names, palette)
    shares = class_shares(labels, len(names))
    image, shown = _sized(image, max_side), _sized(labels, max_side, nearest=True)
    known = (shown >= 0) & (shown < len(names))
    colours = np.array([*palette[: len(names)], VOID], np.uint8)
    layer = colours[np.where(known, shown, len(names))]
    canvas = _blend(image, layer, known, opacity, _borders(shown))
    if not legend:
        return canvas
    rows = [(names[k], tuple(palette[k]), f"{100 * share:.1f} %") for k, share in shares]
    return with_legend(canvas, rows)


def draw_segments(
    image: np.ndarray,
    ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    *,
    opacity: float = 0.5,
    legend: bool = True,
    max_side: int = MAX_SIDE,
) -> np.ndarray:
    """An image under its panoptic segments: classes have their colour, objects of one class shades of it.

    Args:
        ids: number of each pixel's segment ``[H, W]``, 0 for none.
        segments: dicts with ``id`` and ``label``.

    The other arguments, the result and the errors are those of :func:`draw_label_map`.
    """
    _check(image, ids, opacity, names, palette)
    image, shown = _sized(image, max_side), _sized(ids, max_side, nearest=True)
    highest = max([int(ids.max(initial=0)), *(int(s["id"]) for s in segments)])
    colours = np.zeros((highest + 1, 3), np.uint8)
    count: dict[int, int] = {}
    for s in segments:
        label = int(s["label"])
        colours[int(s["id"])] = shade(palette[label], count.get(label, 0))
        count[label] = count.get(label, 0) + 1
    canvas = _blend(image, colours[shown], shown > 0, opacity, _borders(shown))
    if not legend:
        return canvas
    rows = [(names[k], tuple(palette[k]), f"{n} x") for k, n in sorted(count.items(), key=lambda row: -row[1])]
    return with_legend(canvas, rows)


def draw_objects(
    image: np.ndarray,
    masks: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float],
    palette: Sequence[Sequence[int]],
    *,
    opacity: float = 0.5,
    legend: bool = True,
    max_side: int = MAX_SIDE,
) -> np.ndarray:
    """An image with its objects: masks in shades of their classes' colours, the first on top, names and scores.

    Args:
        masks: bool ``[N, H, W]``, best first.
        boxes: ``[N, 4]`` corners in pixels of the image; where names are written.
        labels, scores: of each.
        names, palette: of the classes.

    The other arguments, the result and the errors are those of :func:`draw_label_map`.
    """
    if masks.shape != (len(labels), *image.shape[:2]):
        raise ValueError(f"masks have shape {masks.shape}; accepted is {(len(labels), *image.shape[:2])}")
    ids = np.zeros(image.shape[:2], np.int32)
    for i in reversed(range(len(labels))):
        ids[masks[i]] = i + 1
    segments = [{"id": i + 1, "label": int(label)} for i, label in enumerate(labels)]
    canvas = draw_segments(image, ids, segments, names, palette, opacity=opacity, legend=False, max_side=max_side)
    across, down = (canvas.shape[1] / image.shape[1], canvas.shape[0] / image.shape[0])
    size = float(np.clip(max(canvas.shape[:2]) / 1600, 0.4, 1.4))
    for i in reversed(range(len(labels))):
        x, y = round(float(boxes[i][0]) * across), round(float(boxes[i][1]) * down)
        text = f"{names[labels[i]]} {float(scores[i]):.2f}".encode("ascii", "replace").decode()
        (wide, tall), base = cv2.getTextSize(text, _FONT, size, 1)
        top = max(y, tall + base)
        cv2.rectangle(canvas, (x, top - tall - base), (x + wide, top), (255, 255, 255), -1)
        cv2.putText(canvas, text, (x, top - base // 2), _FONT, size, _INK, 1, cv2.LINE_AA)
    if not legend:
        return canvas
    count = {k: list(labels).count(k) for k in labels}
    rows = [(names[k], tuple(palette[k]), f"{n} x") for k, n in sorted(count.items(), key=lambda row: -row[1])]
    return with_legend(canvas, rows)


def class_shares(labels: np.ndarray, num_classes: int) -> list[tuple[int, float]]:
    """(class, share of the pixels) of the classes that are there, most first."""
    counts = np.zeros(num_classes, np.int64)
    for row in np.array_split(labels.reshape(-1), max(1, labels.size >> 22)):  # in parts: bincount makes int64 of them
        good = row[(row >= 0) & (row < num_classes)]
        counts += np.bincount(good, minlength=num_classes)
    order = np.argsort(-counts, kind="stable")
    return [(int(k), float(counts[k] / labels.size)) for k in order if counts[k]]


def shade(colour: Sequence[int], number: int) -> tuple[int, int, int]:
    """The ``number``-th shade of a colour; the 0-th is the colour itself."""
    if number == 0:
        return int(colour[0]), int(colour[1]), int(colour[2])
    amount = (0.35, 0.6, 0.2, 0.48, 0.28)[number // 2 % 5]
    towards = 255 if number % 2 else 0
    return tuple(round(v + amount * (towards - v)) for v in colour)  # type: ignore[return-value]


def with_legend(canvas: np.ndarray, rows: Sequence[tuple[str, Sequence[int], str]]) -> np.ndarray:
    """A picture with rows of (name, colour, remark) beside it or, if it is wide, below it, in as many columns as fit.

    Rows that do not fit are counted in the last one. Letters that the font lacks are shown as "?".
    """
    if not rows:
        return canvas
    height, width = canvas.shape[:2]
    size = float(np.clip(max(height, width) / 1400, 0.45, 1.4))
    texts = [(f"{name}  {remark}".encode("ascii", "replace").decode(), colour) for name, colour, remark in rows]
    (_, letter), base = cv2.getTextSize("Ag", _FONT, size, 1)
    line = letter + base + max(4, letter // 2)
    pad = line // 2
    cell = max(cv2.getTextSize(text, _FONT, size, 1)[0][0] for text, _ in texts) + line + 2 * pad
    below = width > 1.2 * height
    if below:
        columns = max(1, width // cell)
        limit = columns * max(1, max(height, 240) // line)
        texts = _cut(texts, limit)
        lines = -(-len(texts) // columns)
        panel = np.full((lines * line + 2 * pad, max(width, cell), 3), 255, np.uint8)
    else:
        lines = max(1, (height - 2 * pad) // line)
        texts = _cut(texts, lines * 3)
        columns = -(-len(texts) // lines)
        panel = np.full((height, columns * cell, 3), 255, np.uint8)
    for i, (text, colour) in enumerate(texts):
        row, column = divmod(i, columns) if below else (i % lines, i // lines)
        x, y = column * cell + pad, row * line + pad
        if colour is not None:
            box = tuple(int(c) for c in colour)
            cv2.rectangle(panel, (x, y), (x + letter + base - 1, y + letter + base - 1), box, -1)
            cv2.rectangle(panel, (x, y), (x + letter + base - 1, y + letter + base - 1), _INK, 1)
        cv2.putText(panel, text, (x + line, y + letter), _FONT, size, _INK, 1, cv2.LINE_AA)
    if not below:
        return np.concatenate([canvas, panel], 1)
    if panel.shape[1] > width:
        canvas = np.pad(canvas, ((0, 0), (0, panel.shape[1] - width), (0, 0)), constant_values=255)
    return np.concatenate([canvas, panel], 0)


def _cut(texts: list[tuple[str, Any]], limit: int) -> list[tuple[str, Any]]:
    if len(texts) <= limit:
        return texts
    kept = max(0, limit - 1)
    return [*texts[:kept], (f"and {len(texts) - kept} more", None)]


def _check(
    image: np.ndarray, labels: np.ndarray, opacity: float, names: Sequence[str], palette: Sequence[Sequence[int]]
) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image has shape {image.shape} and dtype {image.dtype}; accepted is uint8 [H, W, 3]")
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels have shape {labels.shape}, the image {image.shape[:2]}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity={opacity}: accepted are numbers from 0 to 1")
    if len(palette) < len(names):
        raise ValueError(f"{len(palette)} colours for {len(names)} classes")


def _sized(array: np.ndarray, max_side: int, nearest: bool = False) -> np.ndarray:
    """Small ones enlarged by a whole number, large ones shrunk to ``max_side``."""
    height, width = array.shape[:2]
    longest = max(height, width)
    if longest > max_side:
        new = (max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest)))
        if not nearest:
            return cv2.resize(array, new, interpolation=cv2.INTER_AREA)
        rows = ((np.arange(new[1]) + 0.5) * height / new[1]).astype(np.intp)
        columns = ((np.arange(new[0]) + 0.5) * width / new[0]).astype(np.intp)
        return array[rows][:, columns]
    zoom = max(1, round(_MIN_SIDE / longest))
    return array if zoom == 1 else array.repeat(zoom, 0).repeat(zoom, 1)


def _borders(labels: np.ndarray) -> np.ndarray:
    """Bool ``[H, W]``: pixels whose right or lower neighbour has another label."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def _blend(image: np.ndarray, layer: np.ndarray, where: np.ndarray, opacity: float, borders: np.ndarray) -> np.ndarray:
    mixed = cv2.addWeighted(image, 1 - opacity, layer, opacity, 0)
    canvas = np.where(where[..., None], mixed, image)
    canvas[borders] = 255
    return canvas
