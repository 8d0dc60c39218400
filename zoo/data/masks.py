"""Binary masks as COCO's run lengths and polygons.

Format: T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def compress_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """Binary masks ``[N, H, W]`` -> COCO's compressed run lengths, with ``counts`` as text, which JSON can hold.

    Raises:
        ValueError: another number of dimensions.
    """
    from faster_coco_eval.core import mask as api

    masks = np.asarray(masks)
    if masks.ndim != 3:
        raise ValueError(f"masks have shape {masks.shape}; accepted is [N, H, W]")
    if not len(masks):
        return []
    runs = api.encode(np.asfortranarray(masks.astype(np.uint8, copy=False).transpose(1, 2, 0)))
    return [{"size": [int(n) for n in r["size"]], "counts": as_text(r["counts"])} for r in runs]


def decode_masks(runs: Sequence[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """Compressed run lengths of one size -> bool ``[N, height, width]``.

    Raises:
        ValueError: run lengths of another size.
    """
    from faster_coco_eval.core import mask as api

    for run in runs:
        if tuple(run["size"]) != (height, width):
            raise ValueError(f"a mask of size {list(run['size'])} belongs to an image of {height} x {width} pixels")
    if not runs:
        return np.zeros((0, height, width), bool)
    decoded = api.decode([dict(r) for r in runs])  # [height, width, N]
    return np.ascontiguousarray(decoded.transpose(2, 0, 1)).astype(bool)


def as_text(counts: Any) -> Any:
    """Compressed run lengths as text, whether they are bytes or text; others as they are."""
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


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
