"""Linear interpolation of some rows and columns of a map, so that a large map never exists as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.segmentation.geometry import ImageSize

#: Numbers of a float map that exist at a time (64 MiB as float32).
BUDGET = 1 << 24


class Taps(NamedTuple):
    """What each of ``n`` values is made of: ``(1 - weight) * x[low] + weight * x[high]``; each ``[n]``."""

    low: Tensor
    high: Tensor
    weight: Tensor

    def part(self, first: int, behind: int, origin: int = 0) -> Taps:
        """Those from ``first`` up to ``behind``, of values that begin at ``origin``."""
        return Taps(self.low[first:behind] - origin, self.high[first:behind] - origin, self.weight[first:behind])


def taps(count: int, size: int) -> Taps:
    """Taps of ``count`` values made of ``size`` ones: half-pixel centres, as in ``F.interpolate`` (bilinear)."""
    at = ((torch.arange(count, dtype=torch.float64) + 0.5) * size / count - 0.5).clamp(min=0)
    low = at.floor().long()
    weight = at - low
    high = torch.where(weight > 0, low + 1, low).clamp(max=size - 1)
    return Taps(low, high, weight)


def apply_taps(x: Tensor, own: Taps, dim: int) -> Tensor:
    """Interpolate ``x`` along an axis."""
    shape = [1] * x.ndim
    shape[dim] = -1
    low = x.index_select(dim, own.low.to(x.device))
    if not own.weight.any():
        return low
    high = x.index_select(dim, own.high.to(x.device))
    return low.lerp_(high, own.weight.to(x.device, x.dtype).reshape(shape).expand_as(low))


def restored_bands(
    maps: Tensor, size: ImageSize, budget: int = BUDGET, rows: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """:func:`zoo.segmentation.geometry.restore_map` by bands of rows.

    Args:
        maps: float ``[K, h, w]``.
        size: the image's.
        budget: numbers in a band at most (a band has at least one row).
        rows: of a band; as many as the budget allows by default.

    Yields:
        the first row of a band, and the band ``[K, rows, W]``.
    """
    (padded, image, original), classes = size, maps.shape[0]
    down, across = taps(padded[0], maps.shape[1]), taps(padded[1], maps.shape[2])
    across = across.part(0, image[1])
    down_last, across_last = taps(original[0], image[0]), taps(original[1], image[1])
    rows = rows or band_rows(classes, max(original[1], image[1]), budget)
    for first in range(0, original[0], rows):
        behind = min(first + rows, original[0])
        top, bottom = int(down_last.low[first]), int(down_last.high[behind - 1]) + 1
        # along the rows first: there are fewer of them in the small map
        band = apply_taps(apply_taps(maps, down.part(top, bottom), 1), across, 2)
        band = apply_taps(apply_taps(band, down_last.part(first, behind, top), 1), across_last, 2)
        yield first, band


def band_rows(classes: int, width: int, budget: int = BUDGET) -> int:
    """Rows of a band ``[classes, rows, width]`` within a budget; at least 1."""
    return max(1, budget // max(1, classes * width))
