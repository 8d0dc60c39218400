"""Softmax attention over tokens that were pooled as wide as each asks for (token-aware average pooling, TAP).

Robustifying Token Attention for Vision Transformers (ICCV 2023, arXiv 2303.11126, eq. 1-3). Authors' code:
github.com/guoyongcs/TAPADL (MIT). :class:`RecordedAttention` is the attention of their networks, which hands out its
matrix for the attention diversification loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.records import Recorder
from zoo.layers.token_linear import TokenLinear
from zoo.layers.token_pooling import TokenAwarePooling
from zoo.mixers.base import Mixer, linear_flops, row_normalised
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


class RecordedAttention(Recorder):
    """Multi-head self-attention of ``[B, N, C]``, perhaps with a learned factor on the logits of each pair.

    Args:
        dim: channels C.
        num_heads: attention heads.
        qkv_bias: bias of the projections to queries, keys and values.
        separate: queries apart from keys and values, as in FAN.
        mask_size: side of a table ``[heads, side, side]`` whose sigmoid multiplies the logits (position-aware scaling
            of
            RVT, arXiv 2105.07926, eq. 8); 0 for none.

    Records ``attention``: ``[B, heads, N, N]`` after the softmax.

    Raises:
        ValueError: (in ``forward``) more tokens than the table has.
    """

    records = ("attention",)

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, separate: bool = False, mask_size: int = 0):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = None if separate else TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.q = TokenLinear(dim, dim, bias=qkv_bias) if separate else None
        self.kv = TokenLinear(dim, 2 * dim, bias=qkv_bias) if separate else None
        self.att_mask = nn.Parameter(torch.empty(num_heads, mask_size, mask_size)) if mask_size else None
        self.proj = TokenLinear(dim, dim)
        self.no_decay = ("att_mask",)
        if self.att_mask is not None:
            nn.init.trunc_normal_(self.att_mask, std=0.02, a=-0.02, b=0.02)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values ``[B, heads, N, d]``."""
        if self.qkv is not None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q, (k, v) = self.q(x), self.kv(x).chunk(2, dim=-1)  # type: ignore[misc]
        split = (self.num_heads, x.shape[-1] // self.num_heads)
        return tuple(t.unflatten(-1, split).transpose(1, 2) for t in (q, k, v))  # type: ignore[return-value]

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Attention ``[B, heads, N, N]``."""
        logits = q.shape[-1] ** -0.5 * q @ k.transpose(-1, -2)
        if self.att_mask is not None:
            N = q.shape[2]
            if self.att_mask.shape[1] < N:
                raise ValueError(
                    f"{N} tokens, but the mask of positions has {self.att_mask.shape[1]}: accepted are smaller images"
                )
            logits = logits * self.att_mask[:, :N, :N].sigmoid()
        return logits.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        if self.att_mask is None and not self.wants("attention"):
            out = dense_attention(q, k, v)
        else:
            weights = self.weights(q, k)
            self.keep("attention", weights)
            out = weights.to(v.dtype) @ v
        return self.proj(out.transpose(1, 2).flatten(2))

    def flops(self, tokens: int) -> int:
        """Multiply-accumulates for so many tokens."""
        return linear_flops(tokens, self.qkv, self.q, self.kv, self.proj) + 2 * tokens**2 * self.proj.in_features


@register_mixer(name="tap")
class TapAttention(Mixer):
    """Token-aware average pooling, then softmax attention between all pooled tokens.

    Args:
        dim: channels C.
        num_heads: attention heads.
        num_scales: scales of the pooling.
        qkv_bias: bias of the projection to queries, keys and values.

    Source: eq. 1-3.
    """

    def __init__(self, dim: int, num_heads: int = 8, num_scales: int = 4, qkv_bias: bool = True):
        super().__init__(dim, num_heads)
        self.pool = TokenAwarePooling(dim, num_scales)
        self.attn = RecordedAttention(dim, num_heads, qkv_bias)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        self._check(x, prefix)
        return self.attn(self.pool(x).flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: attention times pooling, so that columns are positions of the map itself.

        Zeros that the pooling reads outside the map are left out and rows normalised again.
        """
        self._check(x)
        q, k, _ = self.attn.heads(self.pool(x).flatten(1, 2))
        return row_normalised(self.attn.weights(q, k) @ self.pool.pooling_matrix(x)[:, None])

    def flops(self, height: int, width: int) -> int:
        N = height * width
        return self.pool.flops(N) + self.attn.flops(N)
