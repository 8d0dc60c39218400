"""Efficient Attention: softmax on queries and on keys apart, so that keys and values make a few global contexts.

Efficient Attention: Attention with Linear Complexities (Shen et al., WACV 2021, arXiv 1812.01243, section 3.2).
Authors' code: github.com/cmsflash/efficient-attention (MIT).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.linear_attention import linear_attention


@register_mixer(name="efficient")
class EfficientAttention(Mixer):
    """``softmax_d(q) (softmax_N(k)^T v)``: each key channel of a head is a softmax over the map.

    Args:
        dim: channels C.
        num_heads: attention heads.
        key_dim: channels of queries and keys, all heads together; ``dim`` by default.
        value_dim: channels of values, all heads together; ``dim`` by default.
        qkv_bias: bias of the projections to queries, keys and values.
        residual: add the input, as the authors' module does; hosts do that themselves.

    Raises:
        ValueError: ``key_dim`` or ``value_dim`` is no multiple of ``num_heads``.

    Source: eq. 2-4 of the paper, softmax normalisation; there is no factor on the logits.
    """

    growth = "linear"

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        key_dim: int | None = None,
        value_dim: int | None = None,
        qkv_bias: bool = True,
        residual: bool = False,
    ):
        super().__init__(dim, 1)  # heads divide keys and values, not C itself
        key_dim, value_dim = key_dim or dim, value_dim or dim
        for name, width in (("key_dim", key_dim), ("value_dim", value_dim)):
            if num_heads < 1 or width < 1 or width % num_heads:
                raise ValueError(f"{name}={width} must be a multiple of num_heads={num_heads}")
        self.num_heads, self.head_dim = num_heads, value_dim // num_heads
        self.key_dim, self.value_dim, self.residual = key_dim, value_dim, residual
        self.queries = TokenLinear(dim, key_dim, bias=qkv_bias)
        self.keys = TokenLinear(dim, key_dim, bias=qkv_bias)
        self.values = TokenLinear(dim, value_dim, bias=qkv_bias)
        self.proj = TokenLinear(value_dim, dim)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, H, W, C'] -> [B, heads, H*W, C'/heads]"""
        return x.flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        self._check(x, prefix)
        q, k, v = (self._heads(layer(x)) for layer in (self.queries, self.keys, self.values))
        out = linear_attention(q, k, v, feature_map="softmax")  # [B, heads, H*W, dv]
        out = self.proj(out.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3]))
        return x + out if self.residual else out

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``, the product of both softmaxes; rows sum to 1."""
        self._check(x)
        return self._heads(self.queries(x)).softmax(-1) @ self._heads(self.keys(x)).softmax(-2).mT

    def flops(self, height: int, width: int) -> int:
        N = height * width
        projections = linear_flops(N, self.queries, self.keys, self.values, self.proj)
        return projections + 2 * N * self.key_dim * self.head_dim

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, key_dim={self.key_dim}, value_dim={self.value_dim}"
