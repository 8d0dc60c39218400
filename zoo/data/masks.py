"""Binary masks as COCO's run lengths and polygons.

Format: T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Binary mask ``[H, W]`` -> COCO's uncompressed run lengths ``{"size": [H, W], "counts": [...]}``.

    The counts are lengths of runs of 0, 1, 0, ... down the columns, beginning with zeros (a length of 0 if the first
    pixel is set).
    """
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}; accepted is [H, W]")
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(edges).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)
    return {"size": [int(n) for n in mask.shape], "counts": counts}


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """COCO's uncompressed run lengths -> bool mask ``[H, W]``.

    Raises:
        ValueError: the counts do not cover the size exactly.
    """
    height, width = rle["size"]
    counts = np.asarray(rle["counts"], dtype=np.int64)
    if counts.sum() != height * width or (counts < 0).any():
        raise ValueError(f"run lengths cover {counts.sum()} pixels, but the size is {height} x {width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Binary mask ``[H, W]`` -> COCO polygons ``[[x0, y0, x1, y1, ...], ...]`` in pixel-edge coordinates.

    One polygon a connected part; a hole is joined to its outline by a cut of no width. The outline is exact to a
    quarter of a pixel; run lengths are exact.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}; accepted is [H, W]")
    # At twice the size, a contour through pixel centres lies a quarter of a pixel inside the true outline.
    doubled = np.repeat(np.repeat(np.asarray(mask, dtype=np.uint8), 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for i, contour in enumerate(contours):
        if hierarchy[0][i][3] >= 0:  # a hole: belongs to its parent
            continue
        outline = contour[:, 0].astype(np.float64)
        hole = hierarchy[0][i][2]
        while hole >= 0:
            outline = _join(outline, contours[hole][:, 0].astype(np.float64))
            hole = hierarchy[0][hole][0]
        if len(outline) >= 3:
            polygons.append(((outline + 0.5) / 2).ravel().tolist())
    return polygons


def _join(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One outline that goes around the hole too, over the shortest way between their vertices and back."""
    distance = ((outline[:, None] - hole[None]) ** 2).sum(-1)
    at, to = np.unravel_index(distance.argmin(), distance.shape)
    around = np.concatenate([hole[to:], hole[: to + 1]])
    return np.concatenate([outline[: at + 1], around, outline[at:]])
