"""Window attention upsampling (WAU): a transformer decoder in local windows that enlarges maps, in 2-D and 3-D.

More than Encoder: Introducing Transformer Decoder to Upsample (arXiv 2106.10637). No authors' code is public;
written from the paper's summary. It fixes that queries are the lateral map and keys and values the coarse one, within
local windows, and that the linearly enlarged map is the residual; docs/models/wau.md lists what was chosen beyond that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.medical.layers import CONV, check_dims, resize, to_tuple
from zoo_kernels.dense_attention import dense_attention
from zoo_kernels.window_attention import window_cross_attention
from zoo_kernels.window_attention.cross_cpu import cross_windows


def relative_index(window: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, int]:
    """Which entry of a table belongs to a query and a key of a window, by their distance in fine steps.

    Args:
        window: size of a window of the coarse map.
        stride: fine steps in a coarse one, by dimension.

    Returns:
        Indices ``[queries, keys]``, both in row-major order, and the number of entries.
    """
    index = torch.zeros(1, 1, dtype=torch.long)
    entries = 1
    for w, s in zip(window, stride):
        distance = torch.arange(s * w)[:, None] - s * torch.arange(w)[None]  # [fine, coarse]
        span = 2 * s * w - s
        distance = distance + s * (w - 1)
        # the Kronecker sum of the dimensions before and this one
        index = (index[:, None, :, None] * span + distance[None, :, None, :]).flatten(2).flatten(0, 1)
        entries *= span
    return index, entries


def _windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """``[B, *sizes, C] -> [B * windows, tokens, C]``, filled up with zeros behind."""
    B, *sizes, C = x.shape
    missing = [-n % w for n, w in zip(sizes, window)]
    if any(missing):
        x = F.pad(x, [0, 0, *(p for m in reversed(missing) for p in (0, m))])
    counts = [-(-n // w) for n, w in zip(sizes, window)]
    x = x.reshape(B, *(n for pair in zip(counts, window) for n in pair), C)
    n = len(sizes)
    order = [0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1]
    return x.permute(order).reshape(B * math.prod(counts), math.prod(window), C)


def _joined(x: Tensor, batch: int, sizes: Sequence[int], window: Sequence[int]) -> Tensor:
    """The inverse of :func:`_windows`, cut to the sizes."""
    n = len(sizes)
    counts = [-(-s // w) for s, w in zip(sizes, window)]
    x = x.reshape(batch, *counts, *window, -1)
    order = [0, *(i for pair in zip(range(1, n + 1), range(n + 1, 2 * n + 1)) for i in pair), 2 * n + 1]
    x = x.permute(order).reshape(batch, *(c * w for c, w in zip(counts, window)), -1)
    for axis, size in enumerate(sizes, 1):
        x = x.narrow(axis, 0, size)
    return x


def _volume_cross_attention(
    q: Tensor, kv: Tensor, num_heads: int, window: Sequence[int], kv_window: Sequence[int], bias: Tensor
) -> Tensor:
    """As :func:`zoo_kernels.window_attention.window_cross_attention`, for maps ``[B, D, H, W, C]``."""
    sizes = q.shape[1:-1]
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        scale = (q.shape[-1] // num_heads) ** -0.5
        return cross_windows(q, kv, num_heads, window, kv_window, bias, scale)
    q_win = _windows(q, window).unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B*n, h, T, d]
    k, v = _windows(kv, kv_window).unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B*n, h, t, d]
    bias = bias[None]
    if any(n % w for n, w in zip(kv.shape[1:-1], kv_window)):
        real = _windows(kv.new_ones(1, *kv.shape[1:-1], 1), kv_window)[:, None, None, :, 0] > 0  # [n, 1, 1, t]
        bias = bias.masked_fill(~real, float("-inf")).repeat(q.shape[0], 1, 1, 1)
    out = dense_attention(q_win, k, v, bias=bias)
    return _joined(out.transpose(1, 2).flatten(2), q.shape[0], sizes, window)


class WindowAttentionUpsample(nn.Module):
    """y = U c + A(LN l, LN U' c), out = y + MLP(LN y): the coarse map c at the size of the lateral map l.

    U is a 1x1 convolution and linear interpolation. A is multi-head attention from places of l to places of c in the
    same window, with a learned bias by distance.

    Args:
        lateral_dim: channels of the lateral map.
        coarse_dim: channels of the coarse map.
        dim: channels of the output, a multiple of the heads.
        num_heads: heads.
        window: size of a window of the coarse map; on the lateral map it is ``stride`` times as large.
        stride: how many times finer the lateral map is, by dimension.
        dims: 2 or 3.
        mlp_ratio: width of the MLP's hidden layer, over ``dim``; 0 for none.

    Raises:
        ValueError: an argument outside the above, or maps whose sizes are not ceil(lateral / stride) = coarse.
    """

    index: Tensor  # of each query and key, in the table

    def __init__(
        self,
        lateral_dim: int,
        coarse_dim: int,
        dim: int,
        num_heads: int = 4,
        window: int | Sequence[int] = 4,
        stride: int | Sequence[int] = 2,
        dims: int = 2,
        mlp_ratio: float = 2.0,
    ):
        super().__init__()
        check_dims(dims)
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: accepted is what divides dim={dim}")
        self.dims, self.num_heads = dims, num_heads
        self.kv_window, self.stride = to_tuple(window, dims, "window"), to_tuple(stride, dims, "stride")
        self.window = tuple(w * s for w, s in zip(self.kv_window, self.stride))
        self.residual = CONV[dims](coarse_dim, dim, 1)
        self.norm_q, self.norm_kv = nn.LayerNorm(lateral_dim), nn.LayerNorm(coarse_dim)
        self.q, self.kv = nn.Linear(lateral_dim, dim), nn.Linear(coarse_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        index, entries = relative_index(self.kv_window, self.stride)
        self.register_buffer("index", index, persistent=False)
        self.table = nn.Parameter(torch.zeros(entries, num_heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.mlp: nn.Module | None = None
        if mlp_ratio > 0:
            hidden = int(dim * mlp_ratio)
            self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def bias(self) -> Tensor:
        """``[heads, queries, keys]`` of a window."""
        return self.table[self.index].permute(2, 0, 1)

    def forward(self, lateral: Tensor, coarse: Tensor) -> Tensor:
        """``[B, lateral_dim, ...]`` and ``[B, coarse_dim, ...]`` to ``[B, dim, ...]`` at the lateral map's size."""
        sizes, small = tuple(lateral.shape[2:]), tuple(coarse.shape[2:])
        if small != tuple(-(-n // s) for n, s in zip(sizes, self.stride)):
            raise ValueError(f"the maps have sizes {sizes} and {small}: the coarse one has to be 1/{self.stride}")
        q = self.q(self.norm_q(lateral.movedim(1, -1)))
        c = coarse.movedim(1, -1).contiguous()  # [B, ..., coarse_dim], from which both branches begin
        kv = self.kv(self.norm_kv(c))
        if self.dims == 2:
            out = window_cross_attention(
                q,
                kv,
                num_heads=self.num_heads,
                window=(self.window[0], self.window[1]),
                kv_window=(self.kv_window[0], self.kv_window[1]),
                bias=self.bias(),
            )
        else:
            out = _volume_cross_attention(q, kv, self.num_heads, self.window, self.kv_window, self.bias().to(q.dtype))
        # The 1x1 convolution as a linear layer: the map stays channels-last, which is enlarged faster.
        residual = F.linear(c, self.residual.weight.flatten(1), self.residual.bias)
        y = self.proj(out).add_(resize(residual.movedim(-1, 1), sizes).movedim(1, -1))
        if self.mlp is not None:
            y = self.mlp(y).add_(y)
        return y.movedim(-1, 1)


class LinearUpsample(nn.Module):
    """Linear interpolation to the size of the lateral map and a 1x1 convolution."""

    def __init__(self, coarse_dim: int, dim: int, dims: int = 2):
        super().__init__()
        check_dims(dims)
        self.project = CONV[dims](coarse_dim, dim, 1)

    def forward(self, lateral: Tensor, coarse: Tensor) -> Tensor:
        """Maps as in :class:`WindowAttentionUpsample`."""
        return resize(self.project(coarse), lateral.shape[2:])
