"""Kernel linear attention: a feature map in place of the softmax, so that keys and values are summed up once.

Transformers are RNNs (Katharopoulos et al., ICML 2020, arXiv 2006.16236, eq. 4-7), with the maps elu + 1 of that paper,
ReLU, and exp.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.linear_attention import linear_attention

FEATURE_MAPS = ("elu+1", "relu", "exp")


@register_mixer(name="linear")
class LinearAttention(Mixer):
    """``phi(q_i) . sum_j phi(k_j) v_j / (phi(q_i) . sum_j phi(k_j))`` over the whole map, prefix tokens included.

    Args:
        dim: channels C.
        num_heads: attention heads.
        feature_map: phi, elementwise: "elu+1", "relu" or "exp".
        qkv_bias: bias of the projection to queries, keys and values.

    Raises:
        ValueError: another feature map.

    Source: eq. 5 and 7 of the paper. With "relu" a query all of whose features are zero reads nothing.
    """

    growth = "linear"
    takes_prefix = True

    def __init__(self, dim: int, num_heads: int = 8, feature_map: str = "elu+1", qkv_bias: bool = True):
        super().__init__(dim, num_heads)
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map={feature_map!r}: accepted are {', '.join(map(repr, FEATURE_MAPS))}")
        self.feature_map = feature_map
        self.normalised_rows = feature_map != "relu"
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim)

    def _qkv(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, C] -> three of [B, heads, N, d]"""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        self._check(x, prefix)
        size = x.shape[1:3]
        tokens = x.flatten(1, 2) if prefix is None else torch.cat([prefix, x.flatten(1, 2)], dim=1)
        out = linear_attention(*self._qkv(tokens), feature_map=self.feature_map)  # [B, heads, N, d]
        out = self.proj(out.transpose(1, 2).flatten(2))
        if prefix is None:
            return out.unflatten(1, size)
        P = prefix.shape[1]
        return out[:, P:].unflatten(1, size), out[:, :P]

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``; rows sum to 1, or to 0 where "relu" leaves no feature of the query."""
        self._check(x)
        q, k, _ = self._qkv(x.flatten(1, 2))
        if self.feature_map == "exp":
            return (q + k.logsumexp(-2, keepdim=True)).softmax(-1) @ k.softmax(-2).mT
        q, k = (F.elu(q) + 1, F.elu(k) + 1) if self.feature_map == "elu+1" else (q.relu(), k.relu())
        weights = q @ k.mT
        return weights / (weights.sum(-1, keepdim=True) + 1e-6)

    def flops(self, height: int, width: int) -> int:
        N = height * width
        denominators = 0 if self.feature_map == "exp" else N * self.dim  # exp's are part of its softmax
        return linear_flops(N, self.qkv, self.proj) + 2 * N * self.dim * self.head_dim + denominators

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, feature_map={self.feature_map!r}"
