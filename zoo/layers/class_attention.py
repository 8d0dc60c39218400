"""Prefix tokens that read the map: class attention (CaiT, arXiv:2103.17239, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear
from zoo_kernels.dense_attention import dense_attention


class ClassAttention(nn.Module):
    """Prefix tokens attend themselves and the map; the map is not changed.

    It stands in where a mixer defines no prefix tokens.

    Args:
        dim: channels C.
        num_heads: attention heads; must divide ``dim``.
        qkv_bias: whether the projections to queries, keys and values have a bias.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.q = TokenLinear(dim, dim, bias=qkv_bias)
        self.kv = TokenLinear(dim, 2 * dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim)

    def forward(self, prefix: Tensor, x: Tensor) -> Tensor:
        """``prefix [B, P, C]`` and the map ``x [B, H, W, C]`` -> ``[B, P, C]``."""
        B, P, C = prefix.shape
        heads = (self.num_heads, C // self.num_heads)
        tokens = torch.cat([prefix, x.flatten(1, 2)], dim=1)
        q_BHPD = self.q(prefix).unflatten(-1, heads).transpose(1, 2)
        k_BHND, v_BHND = self.kv(tokens).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4).unbind(0)
        out = dense_attention(q_BHPD, k_BHND, v_BHND)
        return self.proj(out.transpose(1, 2).reshape(B, P, C))
