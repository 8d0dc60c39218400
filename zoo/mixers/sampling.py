"""What a mixer says of where it looks, for drawing: boxes, routes, heat maps, points.

All places are shares of the map's height and width, y first, so that they can be drawn on an image of any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Boxes:
    """Parts of the map, such as windows: ``boxes`` float ``[n, 4]``, y0, x0, y1, x1."""

    label: str
    boxes: Tensor


@dataclass(frozen=True)
class Routes:
    """From one part of the map to others: ``source`` ``[4]``, ``targets`` ``[n, 4]``, ``weights`` ``[n]``."""

    label: str
    source: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Heats:
    """Maps of attention, such as those of agents: ``maps`` ``[n, H, W]``, ``weights`` ``[n]`` of their use."""

    label: str
    maps: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Points:
    """Sampled places, such as those of deformable attention: ``points`` ``[n, 2]`` (y, x), ``weights`` ``[n]``."""

    label: str
    points: Tensor
    weights: Tensor


Drawing = Boxes | Routes | Heats | Points


def place(query: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    """The position (row, column) of a map that shares (y, x) of its sides lie in.

    Raises:
        ValueError: a share outside 0 ... 1.
    """
    y, x = query
    if not (0 <= y <= 1 and 0 <= x <= 1):
        raise ValueError(f"query={query} must be (y, x) between 0 and 1, shares of the map's height and width")
    return min(int(y * height), height - 1), min(int(x * width), width - 1)


def tiles(rows: list[int], columns: list[int], height: int, width: int) -> Tensor:
    """Boxes ``[n, 4]`` between consecutive cuts in tokens, cropped to the map; empty ones are left out."""
    found = [
        (top / height, left / width, min(bottom, height) / height, min(right, width) / width)
        for top, bottom in zip(rows, rows[1:])
        for left, right in zip(columns, columns[1:])
        if top < min(bottom, height) and left < min(right, width)
    ]
    return torch.tensor(found).reshape(-1, 4)
