"""Latte: tokens are compared with latent states instead of with each other.

Latte: Latent Attention for Linear Time Transformers (Dolga et al., arXiv 2402.17512). Written
from the paper's equations; no authors' implementation was compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.linear_attention import linear_attention


@register_mixer(name="latte")
class LatteAttention(Mixer):
    """``sum_l p(l | t) sum_s p(s | l) v_s``: a token chooses among latent states, each of which has chosen tokens.

    ``p(l | t)`` is a softmax over the latents of a projection of token t; ``p(s | l)``, of another one, a softmax over
    the tokens s: over all of them, or where it is causal over those up to t in row-major order.

    Args:
        dim: channels C.
        num_heads: heads; each has latents and values of its own.
        num_latents: latent states of a head; ``dim / num_heads`` by default.
        causal: a token sees itself and those before it, row by row.
        qkv_bias: bias of the projections.

    Raises:
        ValueError: ``num_latents`` below 1.
    """

    growth = "linear"

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        num_latents: int | None = None,
        causal: bool = False,
        qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads)
        self.num_latents = self.head_dim if num_latents is None else num_latents
        if self.num_latents < 1:
            raise ValueError(f"num_latents={num_latents}: accepted are numbers from 1")
        self.causal = causal
        self.to_latents = TokenLinear(dim, num_heads * self.num_latents, bias=qkv_bias)  # logits of p(l | t)
        self.of_latents = TokenLinear(dim, num_heads * self.num_latents, bias=qkv_bias)  # logits of p(s | l)
        self.values = TokenLinear(dim, dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, H, W, C'] -> [B, heads, H*W, C'/heads]"""
        return x.flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        self._check(x, prefix)
        q, k, v = (self._heads(layer(x)) for layer in (self.to_latents, self.of_latents, self.values))
        out = linear_attention(q, k, v, feature_map="softmax", causal=self.causal)  # [B, heads, H*W, d]
        return self.proj(out.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3]))

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``p(s | t)``, ``[B, heads, H*W, H*W]``; rows sum to 1. Causal: memory grows with the latents, too."""
        self._check(x)
        choice, logits = self._heads(self.to_latents(x)).softmax(-1), self._heads(self.of_latents(x))
        if not self.causal:
            return choice @ logits.softmax(-2).mT
        N = logits.shape[2]
        later = torch.ones(N, N, dtype=torch.bool, device=x.device).triu(1)[..., None]  # [t, s, 1]
        chosen = logits.unsqueeze(2).masked_fill(later, float("-inf")).softmax(3)  # [B, heads, t, s, l]
        return torch.einsum("bhtl,bhtsl->bhts", choice, chosen)

    def flops(self, height: int, width: int) -> int:
        """Multiply-accumulates of one image; causal, of the recurrence: its tiled form computes more."""
        N = height * width
        projections = linear_flops(N, self.to_latents, self.of_latents, self.values, self.proj)
        return projections + 2 * N * self.dim * self.num_latents

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_latents={self.num_latents}, causal={self.causal}"
