"""Relative-position bias tables of windows (Swin Transformer, arXiv:2103.14030, equation 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def relative_position_index(window: tuple[int, int]) -> Tensor:
    """Row of the table for each (query, key) pair of a window: ``[wh*ww, wh*ww]`` int64.

    The table has ``(2wh-1)(2ww-1)`` rows, in row-major order of the offset query - key, smallest first.
    """
    wh, ww = window
    rows, columns = torch.arange(wh).repeat_interleave(ww), torch.arange(ww).repeat(wh)  # [wh*ww] each
    dy = rows[:, None] - rows[None, :] + wh - 1
    dx = columns[:, None] - columns[None, :] + ww - 1
    return dy * (2 * ww - 1) + dx


class RelativePositionBias(nn.Module):
    """A learned bias for each head and each offset within a window: called, it gives ``[heads, wh*ww, wh*ww]``.

    Args:
        window: height and width of the window.
        num_heads: attention heads.
    """

    no_decay = ("table",)
    index: Tensor

    def __init__(self, window: tuple[int, int], num_heads: int):
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.zeros((2 * window[0] - 1) * (2 * window[1] - 1), num_heads))
        # Follows from the window, so it is no part of a checkpoint.
        self.register_buffer("index", relative_position_index(window), persistent=False)
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self) -> Tensor:
        n = self.window[0] * self.window[1]
        bias = self.table.index_select(0, self.index.flatten())  # [n*n, heads]
        return bias.t().reshape(-1, n, n).contiguous()

    def extra_repr(self) -> str:
        return f"window={self.window}, num_heads={self.table.shape[1]}"
