"""Softmax attention whose keys and values come from a reduced map (PVT, arXiv:2102.12122, eq. 1-3)."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.layers.spatial_reduction import SpatialReduction
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


@register_mixer(name="spatial_reduction")
class SpatialReductionAttention(Mixer):
    """Every position attends the positions of the map reduced by ``sr_ratio``.

    Args:
        dim: channels C.
        num_heads: attention heads.
        sr_ratio: how much smaller the map of the keys is along each axis; 1 for full attention.
        qkv_bias: bias of the projections to queries, keys and values.
        qk_scale: factor of the logits; ``head_dim ** -0.5`` by default.

    Raises:
        ValueError: ``sr_ratio`` below 1.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, sr_ratio: int = 1, qkv_bias: bool = True, qk_scale: float | None = None
    ):
        super().__init__(dim, num_heads)
        if sr_ratio < 1:
            raise ValueError(f"sr_ratio={sr_ratio}: accepted are numbers from 1")
        self.scale = qk_scale or self.head_dim**-0.5
        self.q = TokenLinear(dim, dim, bias=qkv_bias)
        self.kv = TokenLinear(dim, 2 * dim, bias=qkv_bias)
        self.reduction = SpatialReduction(dim, sr_ratio) if sr_ratio > 1 else None
        self.proj = TokenLinear(dim, dim)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, heads, H*W, d]"""
        return x.flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        self._check(x, prefix)
        source = x if self.reduction is None else self.reduction(x)
        k, v = self.kv(source).chunk(2, dim=-1)
        out = dense_attention(self._heads(self.q(x)), self._heads(k), self._heads(v), scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(x.shape))  # from [B, heads, H*W, d]

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``, rows sum to 1.

        Raises:
            TypeError: keys come from a reduced map (``sr_ratio`` above 1).
        """
        self._check(x)
        if self.reduction is not None:
            raise TypeError("keys come from a reduced map (sr_ratio): there is no attention map between positions")
        q, k = self._heads(self.q(x)), self._heads(self.kv(x).chunk(2, dim=-1)[0])
        return (q @ k.transpose(-1, -2) * self.scale).softmax(-1)

    @torch.no_grad()
    def attention_values(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, d]``, of the positions of the map that :meth:`attention_map` is of."""
        self._check(x)
        return self._heads(self.kv(x).chunk(2, dim=-1)[1])

    def flops(self, height: int, width: int) -> int:
        N = M = height * width
        total = linear_flops(N, self.q, self.proj)
        if self.reduction is not None:
            M = self.reduction.positions(height, width)
            total += linear_flops(M, self.reduction.conv)
        return total + linear_flops(M, self.kv) + 2 * N * M * self.dim
