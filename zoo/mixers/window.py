"""Attention within windows, with relative-position bias and shift (Swin Transformer, arXiv:2103.14030).

Without bias and shift it is the spatial attention of DaViT (arXiv:2204.03645, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.layers.padding import pad_hwc, remainder, to_pair
from zoo.layers.relative_position import RelativePositionBias
from zoo.layers.token_linear import TokenLinear
from zoo.layers.windows import window_partition, window_reverse
from zoo.mixers.base import Mixer, linear_flops, row_normalised
from zoo.mixers.sampling import Boxes, Drawing, tiles
from zoo.registry import register_mixer
from zoo_kernels.window_attention import window_attention


@register_mixer(name="window")
class WindowAttention(Mixer):
    """Multi-head self-attention within windows that tile the map.

    A map that the windows do not tile is padded with zeros at the bottom and right; padded tokens are attended, as in
    the authors' implementations of Swin and DaViT. The window is never shrunk; along an axis that fits into one window
    nothing is shifted unless ``always_shift`` says so.

    Args:
        dim: channels C.
        num_heads: attention heads.
        window_size: tokens along each side of a window, one number or (height, width).
        shift_size: how far the windows are shifted against the map, one number or (height, width); tokens from
            different sides of the map's edge do not attend each other.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        rel_pos_bias: whether a learned bias for each offset is added to the logits.
        qk_scale: factor of the logits; ``head_dim ** -0.5`` by default.
        always_shift: shift along an axis that fits into one window too, as Swin's code for dense tasks does.
    """

    growth = "linear"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int] = 7,
        shift_size: int | tuple[int, int] = 0,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        qk_scale: float | None = None,
        always_shift: bool = False,
    ):
        super().__init__(dim, num_heads)
        self.scale = qk_scale or self.head_dim**-0.5
        self.window = to_pair(window_size, "window_size")
        self.shift = (shift_size, shift_size) if isinstance(shift_size, int) else tuple(shift_size)
        if len(self.shift) != 2 or any(not 0 <= s < w for s, w in zip(self.shift, self.window)):
            raise ValueError(f"shift_size={shift_size!r}: accepted are 0 to less than the window {self.window}")
        self.always_shift = always_shift
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim)
        self.rel_pos_bias = RelativePositionBias(self.window, num_heads) if rel_pos_bias else None

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``; raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        shift = self.shift_for(x.shape[1], x.shape[2])
        if x.is_cuda or shift != (0, 0):
            # The operator finds the windows itself: nothing is copied. A padded token is zero, so its q, k, v are
            # the projection's bias.
            pad = x.new_zeros(3 * self.dim) if self.qkv.bias is None else self.qkv.bias
            out = window_attention(
                self.qkv(x),
                num_heads=self.num_heads,
                window=self.window,
                shift=shift,
                bias=bias,
                pad_value=pad,
                scale=self.scale,
            )
            return self.proj(out)
        # On a CPU it is cheaper to cut the windows out of x (C channels) than out of its projection (3C).
        height, width = x.shape[1:3]
        x = pad_hwc(x, self.window)
        qkv = self.qkv(window_partition(x, self.window))  # [B*windows, wh, ww, 3C]
        out = window_attention(qkv, num_heads=self.num_heads, window=self.window, bias=bias, scale=self.scale)
        out = window_reverse(self.proj(out), x.shape[1], x.shape[2])
        return out[:, :height, :width]

    def shift_for(self, height: int, width: int) -> tuple[int, int]:
        """The shift on a map of this size: none along an axis that fits into one window (but see ``always_shift``)."""
        (wh, ww), (sh, sw) = self.window, self.shift
        if self.always_shift:
            return sh, sw
        return (0 if height <= wh else sh), (0 if width <= ww else sw)

    def flops(self, height: int, width: int) -> int:
        tokens = (height + remainder(height, self.window[0])) * (width + remainder(width, self.window[1]))
        attention = 2 * tokens * self.window[0] * self.window[1] * self.dim
        return linear_flops(tokens, self.qkv, self.proj) + attention

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: zero outside the window; what padded tokens took is shared out over the row."""
        self._check(x)
        B, H, W, C = x.shape
        (wh, ww), (sh, sw) = self.window, self.shift_for(H, W)
        x = torch.roll(pad_hwc(x, self.window), (-sh, -sw), (1, 2))
        Hp, Wp = x.shape[1:3]
        qkv = self.qkv(x).reshape(B, Hp * Wp, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        logits = self.scale * qkv[0] @ qkv[1].transpose(-1, -2)  # [B, heads, N, N]
        rows, columns = torch.arange(Hp, device=x.device), torch.arange(Wp, device=x.device)
        # A token's group: its window, and the side of the wrapped edge that it comes from.
        row_group = 2 * (rows // wh) + (rows >= Hp - sh)
        column_group = 2 * (columns // ww) + (columns >= Wp - sw)
        group = (row_group[:, None] * (2 * Wp) + column_group).flatten()  # [N]
        logits = logits.masked_fill(group[:, None] != group, float("-inf"))
        if self.rel_pos_bias is not None:
            inside = (rows[:, None] % wh * ww + columns % ww).flatten()  # [N]: place within the window
            logits = logits + self.rel_pos_bias()[:, inside[:, None], inside]
        maps = logits.softmax(-1).reshape(B, self.num_heads, Hp, Wp, Hp, Wp)
        maps = torch.roll(maps, (sh, sw, sh, sw), (2, 3, 4, 5))[:, :, :H, :W, :H, :W]
        return row_normalised(maps.reshape(B, self.num_heads, H * W, H * W))

    @torch.no_grad()
    def attention_values(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, d]``; those of padded tokens are left out."""
        self._check(x)
        return self.qkv(x.flatten(1, 2))[..., 2 * self.dim :].unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def sampling(self, x: Tensor, query: tuple[float, float] = (0.5, 0.5)) -> list[Drawing]:
        """The windows; with a shift those at the edge are cut where the map wraps around."""
        self._check(x)
        H, W = x.shape[1:3]
        cuts = []
        for size, window, shift in zip((H, W), self.window, self.shift_for(H, W)):
            cuts.append(sorted({0, *range(shift, size + window, window)}))
        return [Boxes("windows", tiles(cuts[0], cuts[1], H, W))]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}, shift={self.shift}"
