"""Windows, perhaps shifted, for a mixer of tokens: what the linear attentions of Swin's heirs share.

As in Agent-Swin (arXiv 2312.08874) and InLine-Swin (arXiv 2412.06590): a shift is cyclic and nothing is masked.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from zoo.layers.padding import pad_hwc
from zoo.layers.windows import window_partition, window_reverse
from zoo.mixers.base import Mixer, row_normalised


class UnmaskedWindows(Mixer):
    """To inherit from before a mixer with ``forward_tokens(tokens [B, N, C], size (H, W))``: it works in windows then.

    A window at the border of a shifted map gathers tokens from opposite sides of the map, which attend each other. A
    map that the windows do not tile is padded with zeros at the bottom and right, before the projection; along an axis
    that fits into one window, the window is that axis, without shift.
    """

    window_size: int
    shift_size: int
    whole_map: bool

    @staticmethod
    def check_windows(window_size: int, shift_size: int) -> None:
        """Raise ValueError for a window below 1 or a shift outside 0 to less than the window."""
        if window_size < 1:
            raise ValueError(f"window_size={window_size}: accepted are numbers from 1")
        if not 0 <= shift_size < window_size:
            raise ValueError(f"shift_size={shift_size}: accepted are 0 to less than window_size={window_size}")

    def _window(self, length: int) -> tuple[int, int]:
        """Window and shift along an axis of ``length``."""
        if self.whole_map or length <= self.window_size:
            return length, 0
        return self.window_size, self.shift_size

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        self._check(x, prefix)
        H, W = x.shape[1:3]
        (wh, sh), (ww, sw) = self._window(H), self._window(W)
        x = pad_hwc(x, (wh, ww))
        height, width = x.shape[1:3]
        if sh or sw:
            x = torch.roll(x, (-sh, -sw), (1, 2))
        windows = window_partition(x, (wh, ww)).flatten(1, 2)  # [B * windows, wh * ww, C]
        mixed: Tensor = cast(Any, self).forward_tokens(windows, (wh, ww))  # the class that this is put before has it
        windows = mixed.unflatten(1, (wh, ww))
        x = window_reverse(windows, height, width)
        if sh or sw:
            x = torch.roll(x, (sh, sw), (1, 2))
        return x[:, :H, :W]

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: zero outside the window.

        Where rows are normalised, what padded tokens took is shared out over the row.
        """
        self._check(x)
        B, H, W, _ = x.shape
        (wh, sh), (ww, sw) = self._window(H), self._window(W)
        x = torch.roll(pad_hwc(x, (wh, ww)), (-sh, -sw), (1, 2))
        Hp, Wp = x.shape[1:3]
        inside = super().attention_map(window_partition(x, (wh, ww)))  # [B * windows, heads, n, n], n = wh * ww
        inside = inside.unflatten(0, (B, -1)).transpose(1, 2)  # [B, heads, windows, n, n]
        position = torch.arange(Hp * Wp, device=x.device).reshape(1, Hp, Wp, 1)
        position = window_partition(torch.roll(position, (-sh, -sw), (1, 2)), (wh, ww)).flatten(1)  # [windows, n]
        maps = inside.new_zeros(B, self.num_heads, Hp * Wp, Hp * Wp)
        maps[:, :, position[:, :, None], position[:, None, :]] = inside
        maps = maps.unflatten(3, (Hp, Wp)).unflatten(2, (Hp, Wp))[:, :, :H, :W, :H, :W]  # [B, heads, H, W, H, W]
        maps = maps.flatten(4).flatten(2, 3)
        return row_normalised(maps) if self.normalised_rows else maps

    def flops(self, height: int, width: int) -> int:
        wh, ww = self._window(height)[0], self._window(width)[0]
        return -(-height // wh) * -(-width // ww) * super().flops(wh, ww)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window_size={self.window_size}, shift_size={self.shift_size}"
