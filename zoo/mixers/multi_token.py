"""Multi-token attention: scores are convolved over neighbouring queries, keys and heads.

Multi-Token Attention (arXiv 2504.00927). Authors' code: github.com/facebookresearch/RAM, projects/mta (MIT; read for
facts). The paper's model is causal; here every query sees every key, so that both masks of its eq. 5 fall away and the
kernels reach as far forward as back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import linear_flops
from zoo.mixers.sequence import SequenceMixer
from zoo.registry import register_mixer

PLACES = ("before", "after")


@register_mixer(name="multi_token")
class MultiTokenAttention(SequenceMixer):
    """Attention whose weights depend on several neighbouring queries, keys and heads at once.

    Tokens are neighbours in raster order, across the ends of rows too, as the paper's are in the text.

    Args:
        dim: channels C.
        num_heads: attention heads.
        query_kernel: queries that the convolution of a head's scores reaches over; odd.
        key_kernel: keys that it reaches over; odd.
        head_kernel: neighbouring heads that are mixed; must divide ``num_heads``; all of them by default.
        convolve: convolve the scores "before" the softmax (eq. 3) or the weights "after" it (eq. 6).
        mix_heads: mix heads "before" or "after" the softmax (eq. 7).
        depth: number of the block from 0; the norm of the heads is scaled by 1 - (0.8 - 0.6 exp(-0.3 depth)).
        qkv_bias: bias of the projection to queries, keys and values.

    Raises:
        ValueError: an even kernel, heads that ``head_kernel`` does not divide, or another word than those above.

    Source: eq. 3, 6 and 7; group normalisation with depth scaling, figure 1 (as in arXiv 2410.05258). Kernels start as
    the identity.
    """

    normalised_rows = False

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        query_kernel: int = 5,
        key_kernel: int = 11,
        head_kernel: int | None = None,
        convolve: str = "before",
        mix_heads: str = "after",
        depth: int = 0,
        qkv_bias: bool = False,
    ):
        super().__init__(dim, num_heads)
        for name, size in (("query_kernel", query_kernel), ("key_kernel", key_kernel)):
            if size < 1 or size % 2 == 0:
                raise ValueError(f"{name}={size}: accepted are odd numbers from 1")
        head_kernel = num_heads if head_kernel is None else head_kernel
        if head_kernel < 1 or num_heads % head_kernel:
            raise ValueError(f"head_kernel={head_kernel}: accepted are divisors of num_heads={num_heads}")
        for name, place in (("convolve", convolve), ("mix_heads", mix_heads)):
            if place not in PLACES:
                raise ValueError(f"{name}={place!r}: accepted are 'before' and 'after' (the softmax)")
        if depth < 0:
            raise ValueError(f"depth={depth}: accepted are numbers from 0")
        self.convolve = convolve
        self.mix_heads = mix_heads
        self.gain = 1 - (0.8 - 0.6 * math.exp(-0.3 * depth))
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.kernel = nn.Parameter(torch.zeros(num_heads, 1, query_kernel, key_kernel))
        self.head_kernel = nn.Parameter(torch.eye(head_kernel).repeat(num_heads // head_kernel, 1, 1))
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)
        self.proj = TokenLinear(dim, dim)
        self.no_decay = ("kernel", "head_kernel")
        with torch.no_grad():
            self.kernel[:, :, query_kernel // 2, key_kernel // 2] = 1

    def _convolved(self, scores: Tensor) -> Tensor:
        """A convolution of each head's matrix ``[B, h, N, N]``, with zeros outside."""
        padding = (self.kernel.shape[2] // 2, self.kernel.shape[3] // 2)
        return F.conv2d(scores, self.kernel, padding=padding, groups=self.num_heads)

    def _mixed(self, scores: Tensor) -> Tensor:
        """Each head of ``[B, h, N, N]`` a learned sum of the heads of its group."""
        grouped = scores.unflatten(1, self.head_kernel.shape[:2])  # [B, groups, heads, N, N]
        return torch.einsum("gij,bgjnm->bginm", self.head_kernel, grouped).flatten(1, 2)

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = self.head_dim**-0.5 * q @ k.transpose(-1, -2)  # [B, h, N, N]
        if self.convolve == "before":
            scores = self._convolved(scores)
        if self.mix_heads == "before":
            scores = self._mixed(scores)
        weights = scores.softmax(-1)
        if self.convolve == "after":
            weights = self._convolved(weights)
        return self._mixed(weights) if self.mix_heads == "after" else weights

    def mix(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(t) for t in self.qkv(tokens).chunk(3, dim=-1))  # [B, h, N, d]
        out = self._weights(q, k).to(v.dtype) @ v
        out = self.norm(out.to(self.norm.weight.dtype))  # half precision is normalised in the dtype of the weights
        return self.proj(self.join(self.gain * out))

    def weights(self, tokens: Tensor) -> Tensor:
        """``[B, heads, N, N]``, signed: what the values are weighted by, before the norm."""
        q, k, _ = (self.split(t) for t in self.qkv(tokens).chunk(3, dim=-1))
        return self._weights(q, k)

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        pairs = tokens * tokens
        kernels = self.kernel.numel() + self.head_kernel.numel()  # products for a pair of tokens, over all heads
        return linear_flops(tokens, self.qkv, self.proj) + pairs * (2 * self.dim + kernels)
