"""Circular-convolutional attention (CAT): every row of the attention is the row above, shifted by one token.

CAT: Circular-Convolutional Attention for Sub-Quadratic Transformers (NeurIPS 2025, arXiv 2504.06704). The authors
published no code; this follows the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer


def circular_attention(weights: Tensor, v: Tensor) -> Tensor:
    """``out_i = sum_j weights_{(j - i) mod N} v_j`` by Fourier transforms.

    Args:
        weights: ``[B, heads, N]``, the first row of the circulant matrix.
        v: ``[B, heads, N, d]``.

    Returns:
        ``[B, heads, N, d]``, the dtype of ``v``.
    """
    # Fourier transforms of half precision are not defined everywhere
    real = v.dtype if v.dtype in (torch.float32, torch.float64) else torch.float32
    # the weights by distance i - j, so that the sum is a convolution
    kernel = torch.cat([weights[..., :1], weights[..., 1:].flip(-1)], dim=-1).to(real).unsqueeze(-1)  # [B, heads, N, 1]
    spectrum = torch.fft.rfft(kernel, dim=2) * torch.fft.rfft(v.to(real), dim=2)  # [B, heads, F, d]
    return torch.fft.irfft(spectrum, n=v.shape[2], dim=2).to(v.dtype)


@register_mixer(name="circular")
class CircularAttention(Mixer):
    """CAT over the tokens in row-major order, prefix tokens first.

    ``out = Roll(softmax(z)) V`` with ``Roll(a)_ij = a_{(j - i) mod N}``: there is one softmax a head, over the scores
    of all tokens, and what differs between the rows is the shift.

    Args:
        dim: channels C.
        num_heads: heads, each with a z of its own.
        averaged_key: ``z = Q mean(K)^T / sqrt(d)`` (the paper's Averaged-Key form) rather than ``z = x W_A``.
        qkv_bias: bias of the projections.

    Source: section 4: ``Roll(softmax(x W_A)) (x W_V)``, and the Averaged-Key form of its ablation.
    """

    growth = "n log n"
    takes_prefix = True

    def __init__(self, dim: int, num_heads: int = 8, averaged_key: bool = False, qkv_bias: bool = True):
        super().__init__(dim, num_heads)
        self.score = None if averaged_key else TokenLinear(dim, num_heads, bias=False)
        self.qk = TokenLinear(dim, 2 * dim, bias=qkv_bias) if averaged_key else None
        self.v = TokenLinear(dim, dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim)

    def weights(self, tokens: Tensor) -> Tensor:
        """First row of the circulant attention, ``[B, heads, N]``, which sums to 1, of tokens ``[B, N, C]``."""
        if self.score is not None:
            return self.score(tokens).transpose(1, 2).softmax(-1)
        assert self.qk is not None
        q, k = (t.unflatten(2, (self.num_heads, -1)) for t in self.qk(tokens).chunk(2, dim=-1))  # [B, N, heads, d]
        return ((q * k.mean(1, keepdim=True)).sum(-1) * self.head_dim**-0.5).transpose(1, 2).softmax(-1)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``[B, H, W, C] -> [B, H, W, C]``, with ``prefix`` ``[B, P, C]`` the pair of map and prefix."""
        self._check(x, prefix)
        size, tokens = x.shape[1:3], x.flatten(1, 2)
        if prefix is not None:
            tokens = torch.cat([prefix, tokens], dim=1)
        v = self.v(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, d]
        out = self.proj(circular_attention(self.weights(tokens), v).transpose(1, 2).flatten(2))
        if prefix is None:
            return out.unflatten(1, size)
        P = prefix.shape[1]
        return out[:, P:].unflatten(1, size), out[:, :P]

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: the circulant matrices; rows sum to 1."""
        self._check(x)
        weights = self.weights(x.flatten(1, 2))
        place = torch.arange(weights.shape[-1], device=x.device)
        return weights[..., (place[None, :] - place[:, None]) % len(place)]

    def flops(self, height: int, width: int) -> int:
        """Projections, and ``N log2 N`` a channel for each of the two transforms of the values."""
        tokens = height * width
        transforms = 2 * self.dim * tokens * max(1, math.ceil(math.log2(max(2, tokens))))
        mean = 0 if self.qk is None else tokens * self.dim
        return linear_flops(tokens, self.score, self.qk, self.v, self.proj) + mean + transforms
