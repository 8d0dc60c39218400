"""Aggregated attention with a mixture of heads: each query sees its neighbourhood and the pooled map in one softmax.

TransNeXt: Robust Foveal Visual Perception for Vision Transformers (CVPR 2024, arXiv 2311.17132, eq. 1-9), with the
gates of MoH (arXiv 2410.11842). Authors' code: github.com/SkyworkAI/MoH (Apache-2.0). Difference: any map size is
accepted (cells of the pooled map and relative positions follow it).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.padding import to_pair
from zoo.layers.relative_mlp import RelativeMlp
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.mixers.moh import HeadGates, default_heads, initial_temperature
from zoo.registry import register_mixer


@register_mixer(name="moh_aggregated")
class AggregatedAttention(Mixer):
    """Attention to a window of neighbours and to the pooled map, whose heads are weighed for each token.

    Args:
        dim: channels C.
        num_heads: attention heads.
        shared_heads, routed_heads: see :class:`~zoo.mixers.moh.HeadGates`; None for about three quarters on.
        window_size: odd side of the neighbourhood.
        sr_ratio: positions of the map, along each axis, for one of the pooled map.
        pool_size: side of the pooled map, whatever the map (at most the map's own); overrides ``sr_ratio``.
        input_size: map (H, W) that the relative positions take as their unit.
        qkv_bias: bias of the projections to queries, keys and values.

    Raises:
        ValueError: an even window, a ratio or size below 1, numbers of heads that do not fit.

    Source: TransNeXt eq. 1-9; MoH eq. 4-8.
    """

    #: with a pooled map in proportion to the map; linear with ``pool_size``
    growth = "quadratic"

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        shared_heads: int | None = None,
        routed_heads: int | None = None,
        window_size: int = 3,
        sr_ratio: int = 4,
        pool_size: int | None = None,
        input_size: int | tuple[int, int] = (14, 14),
        qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads)
        if window_size < 1 or window_size % 2 == 0:
            raise ValueError(f"window_size={window_size}: accepted are odd numbers from 1")
        if sr_ratio < 1:
            raise ValueError(f"sr_ratio={sr_ratio}: accepted are numbers from 1")
        if pool_size is not None and pool_size < 1:
            raise ValueError(f"pool_size={pool_size}: accepted are numbers from 1, or None")
        shared, routed = default_heads(num_heads)
        shared = shared if shared_heads is None else shared_heads
        routed = routed if routed_heads is None else routed_heads
        self.window_size, self.sr_ratio, self.pool_size = window_size, sr_ratio, pool_size
        cells = window_size**2
        self.q = TokenLinear(dim, dim, bias=qkv_bias)
        self.kv = TokenLinear(dim, 2 * dim, bias=qkv_bias)
        self.query_embedding = nn.Parameter(torch.empty(num_heads, 1, self.head_dim))
        self.temperature = initial_temperature(num_heads)
        self.local_bias = nn.Parameter(torch.empty(num_heads, cells))
        self.learnable_tokens = nn.Parameter(torch.empty(num_heads, self.head_dim, cells))
        self.learnable_bias = nn.Parameter(torch.zeros(num_heads, 1, cells))
        self.sr = TokenLinear(dim, dim)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(dim)
        self.position = RelativeMlp(num_heads, to_pair(input_size, "input_size"))
        self.gates = HeadGates(dim, num_heads, shared, routed)
        self.proj = TokenLinear(dim, dim)
        self.no_decay = ("query_embedding", "temperature", "local_bias")
        nn.init.trunc_normal_(self.query_embedding, std=0.02)
        nn.init.trunc_normal_(self.local_bias, std=0.0004)
        nn.init.trunc_normal_(self.learnable_tokens, std=0.02)

    def pooled_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the pooled map."""
        if self.pool_size is not None:
            return min(self.pool_size, height), min(self.pool_size, width)
        return max(1, height // self.sr_ratio), max(1, width // self.sr_ratio)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        self._check(x, prefix)
        B, H, W, C = x.shape
        q, local, pooled, v, v_pool = self._weights(x)
        # Values of the neighbourhood get a weight that depends on the query and the place alone, besides the softmax.
        place = q @ self.learnable_tokens.to(q.dtype) + self.learnable_bias.to(q.dtype)
        local = (place + local).unflatten(2, (H, W))  # [B, heads, H, W, cells]
        out = (pooled @ v_pool).unflatten(2, (H, W))  # [B, heads, H, W, d]
        for cell, shifted in enumerate(self._neighbours(v)):
            out = out + local[..., cell, None] * shifted
        out = out.permute(0, 2, 3, 1, 4) * self.gates(x)[..., None]  # [B, H, W, heads, d]
        return self.proj(out.flatten(3))

    def _neighbours(self, planes: Tensor) -> list[Tensor]:
        """``[B, heads, H, W, d]`` shifted to each cell of the window, row by row; zeros outside the map."""
        H, W, reach = planes.shape[2], planes.shape[3], self.window_size // 2
        padded = F.pad(planes, (0, 0, reach, reach, reach, reach))
        side = range(self.window_size)
        return [padded[:, :, i : i + H, j : j + W] for i in side for j in side]

    def _inside(self, H: int, W: int, device: torch.device) -> Tensor:
        """Which cells of each window are on the map: ``[H*W, cells]`` bool."""
        steps = torch.arange(self.window_size, device=device) - self.window_size // 2
        rows = torch.arange(H, device=device)[:, None] + steps  # [H, ws]
        columns = torch.arange(W, device=device)[:, None] + steps
        rows, columns = (rows >= 0) & (rows < H), (columns >= 0) & (columns < W)
        return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(H * W, -1)

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Unit queries ``[B, h, N, d]``, weights of neighbours ``[B, h, N, cells]`` and of the pooled map
        ``[B, h, N, M]``, values ``[B, h, H, W, d]`` and pooled values ``[B, h, M, d]``."""
        B, H, W, C = x.shape
        heads = (self.num_heads, self.head_dim)
        Hk, Wk = self.pooled_size(H, W)
        q = F.normalize(self.q(x).reshape(B, H * W, *heads).transpose(1, 2), dim=-1)
        k, v = self.kv(x).unflatten(-1, (2, *heads)).permute(3, 0, 4, 1, 2, 5).unbind(0)  # [B, h, H, W, d]
        k = F.normalize(k, dim=-1)
        inside = self._inside(H, W, x.device)
        length = (inside.sum(-1, keepdim=True) + Hk * Wk).to(q.dtype).log()  # [N, 1]
        scaled = ((q + self.query_embedding) * F.softplus(self.temperature) * length).to(v.dtype)
        maps = scaled.unflatten(2, (H, W))
        local = torch.stack([(maps * n).sum(-1) for n in self._neighbours(k)], dim=-1).flatten(2, 3)
        local = (local + self.local_bias[:, None]).masked_fill(~inside, -math.inf)
        pooled = F.adaptive_avg_pool2d(self.act(self.sr(x)).permute(0, 3, 1, 2), (Hk, Wk))
        kv = self.kv(self.norm(pooled.flatten(2).transpose(1, 2)))  # [B, M, 2C]
        k_pool, v_pool = kv.unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4).unbind(0)  # [B, h, M, d]
        far = scaled @ F.normalize(k_pool, dim=-1).to(scaled.dtype).transpose(-1, -2)
        far = far + self.position((H, W), (Hk, Wk))
        weights = torch.cat([local, far.to(local.dtype)], dim=-1).softmax(-1).to(v.dtype)
        return q.to(v.dtype), *weights.split([self.window_size**2, Hk * Wk], dim=-1), v, v_pool

    def flops(self, height: int, width: int) -> int:
        N, (Hk, Wk) = height * width, self.pooled_size(height, width)
        cells, M = self.window_size**2, Hk * Wk
        attention = 2 * N * (cells + M) * self.dim + N * cells * self.dim
        projections = linear_flops(N, self.q, self.kv, self.sr, self.proj) + linear_flops(M, self.kv)
        table = (2 * height) * (2 * width)
        return projections + attention + self.gates.flops(N) + linear_flops(table, self.position.fc1, self.position.fc2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window_size={self.window_size}, sr_ratio={self.sr_ratio}"
