"""Cutting a channels-last map into windows and putting it together again."""

from __future__ import annotations

from torch import Tensor


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """``[B, H, W, C] -> [B * H/wh * W/ww, wh, ww, C]``; H and W must be multiples of the window (wh, ww)."""
    B, H, W, C = x.shape
    wh, ww = window
    if (wh, ww) == (H, W):
        return x
    x = x.reshape(B, H // wh, wh, W // ww, ww, C).transpose(2, 3)  # [B, H/wh, W/ww, wh, ww, C]
    return x.reshape(B * (H // wh) * (W // ww), wh, ww, C)


def window_reverse(windows: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`window_partition`, to a map of ``height`` x ``width``."""
    n, wh, ww, C = windows.shape
    if (wh, ww) == (height, width):
        return windows
    rows, columns = height // wh, width // ww
    B = n // (rows * columns)
    x = windows.reshape(B, rows, columns, wh, ww, C).transpose(2, 3)  # [B, rows, wh, columns, ww, C]
    return x.reshape(B, height, width, C)
