"""A learned table of positions that fits any map by interpolation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionTable(nn.Module):
    """Adds a learned vector to each position of a map ``[B, H, W, C]``.

    On a map of another size than ``size`` the table is interpolated (bicubic, antialiased).

    Args:
        size: height and width of the table.
        dim: channels C.
    """

    no_decay = ("table",)

    def __init__(self, size: tuple[int, int], dim: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, *size, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        table: Tensor = self.table
        size = x.shape[1:3]
        if table.shape[1:3] != size:
            # In float32: half-precision interpolation is not defined everywhere, and the table is small.
            planes = table.permute(0, 3, 1, 2).float()  # [1, C, H, W]
            planes = F.interpolate(planes, size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
            table = planes.permute(0, 2, 3, 1).to(table.dtype)
        return x + table

    def extra_repr(self) -> str:
        return f"size={tuple(self.table.shape[1:3])}, dim={self.table.shape[-1]}"
