"""Attention rollout: attention multiplied through the layers, residual connections included.

S. Abnar and W. Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, arXiv:2005.00928, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Record(Protocol):
    """The attention of one mixer: its positions (H, W) and ``map`` ``[heads, N, N]`` with N = H W."""

    @property
    def grid(self) -> tuple[int, int]: ...

    @property
    def map(self) -> Tensor: ...


def with_residual(attention: Tensor) -> Tensor:
    """``(A + 1) / 2``: what a layer with a residual connection passes on (``[N, N]``)."""
    return (attention + torch.eye(attention.shape[0], dtype=attention.dtype, device=attention.device)) / 2


def rollout(records: Sequence[Record]) -> Tensor:
    """How much each position of the last record holds of each position of the first: ``[N last, N first]``.

    Heads are averaged. Rows of normalised attention sum to 1. Between stages of different resolution a coarse position
    stands for the mean of the fine ones that it covers.

    Args:
        records: mixers in the order in which they ran.

    Raises:
        ValueError: there are none.
    """
    return multiplied((with_residual(r.map.mean(0)) for r in records), [r.grid for r in records])


def multiplied(layers: Iterable[Tensor], grids: Sequence[tuple[int, int]]) -> Tensor:
    """The product of layers ``[N, N]``, the last one leftmost, with a change of resolution where the grid changes."""
    if not grids:
        raise ValueError("there are no attention records to follow")
    total, grid = None, grids[0]
    for layer, size in zip(layers, grids):
        if total is None:
            total = layer
            continue
        if size != grid:
            total = resampled(total, grid, size)
        grid = size
        total = layer @ total
    assert total is not None
    return total


def resampled(total: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Rows of ``[N, M]``, positions of ``grid``, averaged to the positions of ``size``."""
    maps = total.T.reshape(1, -1, *grid)  # [1, M, H, W]
    return F.interpolate(maps, size=size, mode="area").reshape(maps.shape[1], -1).T
