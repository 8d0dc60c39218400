"""A learned table of positions for a sequence: prefix tokens, then a map row by row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenPositions(nn.Module):
    """Adds a learned vector to each token of ``[B, P + H*W, C]``.

    For a map of another size than ``grid`` the table of the map is interpolated (bilinear); that of the prefix stays.

    Args:
        grid: height and width of the table.
        dim: channels C.
        prefix: number P of prefix tokens.
        by_count: a map of as many positions as ``grid`` takes the table as it is, whatever its shape.
    """

    no_decay = ("table",)

    def __init__(self, grid: tuple[int, int], dim: int, prefix: int = 0, by_count: bool = False):
        super().__init__()
        self.grid = grid
        self.prefix = prefix
        self.by_count = by_count
        self.table = nn.Parameter(torch.zeros(1, prefix + grid[0] * grid[1], dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, P + H*W, C] -> [B, P + H*W, C]`` for a map of ``size`` (H, W)."""
        table: Tensor = self.table
        fits = size == self.grid or (self.by_count and size[0] * size[1] == self.grid[0] * self.grid[1])
        if not fits:
            planes = table[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)  # [1, C, H, W]
            planes = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
            table = torch.cat([table[:, : self.prefix], planes.flatten(2).transpose(1, 2)], dim=1)
        return tokens + table

    def extra_repr(self) -> str:
        return f"grid={self.grid}, dim={self.table.shape[-1]}, prefix={self.prefix}"
