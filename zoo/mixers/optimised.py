"""Optimised, Efficient and Super attention: softmax attention with projections left out or moved.

You Need to Pay Better Attention: Rethinking the Mathematics of Attention Mechanism (arXiv 2403.01643). This follows
the paper's equations; no authors' implementation was found.

Optimised attention leaves out the values' projection, which the output projection can stand in for; Efficient attention
leaves out the keys' projection too and has one head; Super attention adds to that a learned matrix that mixes the
values of all positions, from the left.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.padding import to_pair
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import linear_flops
from zoo.mixers.sequence import SequenceMixer
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


@register_mixer(name="optimised")
class OptimisedAttention(SequenceMixer):
    """``softmax(q_i k_i^T / sqrt(d)) x_i`` for each head i, whose values are a slice of the input; then W_O.

    Args:
        dim: channels C.
        num_heads: attention heads.
        qk_bias: bias of the projection to queries and keys.

    Source: the equations of Optimised Attention: H_i = S_i v_i, O = (H_1 ... H_h) W_O.
    """

    def __init__(self, dim: int, num_heads: int = 8, qk_bias: bool = True):
        super().__init__(dim, num_heads)
        self.qk = TokenLinear(dim, 2 * dim, bias=qk_bias)
        self.proj = TokenLinear(dim, dim)

    def mix(self, tokens: Tensor) -> Tensor:
        q, k = (self.split(t) for t in self.qk(tokens).chunk(2, dim=-1))  # [B, h, N, d]
        return self.proj(self.join(dense_attention(q, k, self.split(tokens).to(q.dtype))))

    def weights(self, tokens: Tensor) -> Tensor:
        """``[B, heads, N, N]``, rows sum to 1."""
        q, k = (self.split(t) for t in self.qk(tokens).chunk(2, dim=-1))
        return (self.head_dim**-0.5 * q @ k.transpose(-1, -2)).softmax(-1)

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        return linear_flops(tokens, self.qk, self.proj) + 2 * tokens * tokens * self.dim


@register_mixer(name="optimised_efficient")
class OptimisedEfficientAttention(SequenceMixer):
    """``softmax(q x^T / sqrt(C)) x``, then W_O: keys and values are the input itself, and there is one head.

    Args:
        dim: channels C.
        num_heads: what a host gives; it must divide ``dim``, and counts where ``single_head`` is false.
        single_head: one head, as in the paper; false splits queries and the input into ``num_heads``.
        q_bias: bias of the projection to queries.

    Source: the equations of Efficient Attention: O = softmax(Q W_Q K^T / sqrt(d)) V W_O.
    """

    def __init__(self, dim: int, num_heads: int = 8, single_head: bool = True, q_bias: bool = True):
        super().__init__(dim, num_heads)
        if single_head:
            self.num_heads, self.head_dim = 1, dim
        self.q = TokenLinear(dim, dim, bias=q_bias)
        self.proj = TokenLinear(dim, dim)

    def mix(self, tokens: Tensor) -> Tensor:
        q = self.split(self.q(tokens))  # [B, h, N, d]
        x = self.split(tokens).to(q.dtype)
        return self.proj(self.join(dense_attention(q, x, x)))

    def weights(self, tokens: Tensor) -> Tensor:
        """``[B, heads, N, N]``, rows sum to 1."""
        q, k = self.split(self.q(tokens)), self.split(tokens)
        return (self.head_dim**-0.5 * q @ k.transpose(-1, -2)).softmax(-1)

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        return linear_flops(tokens, self.q, self.proj) + 2 * tokens * tokens * self.dim


@register_mixer(name="super")
class SuperAttention(OptimisedEfficientAttention):
    """``softmax(q x^T / sqrt(C)) (W_A x)``, then W_O: the values of all positions are mixed by the matrix W_A.

    W_A is made for the positions of a map of ``input_size``; on a map of another size the values are averaged to that
    size, mixed, and interpolated back. It starts as the identity, so that the mixer starts as Efficient attention.

    Args:
        dim: channels C.
        num_heads: what a host gives; it must divide ``dim``, and counts where ``single_head`` is false.
        input_size: map (H, W) of the alignment matrix W_A, which has (H W)^2 entries.
        single_head: one head, as in the paper.
        q_bias: bias of the projection to queries.

    Source: the equations of Super Attention: V' = W_A V, O = softmax(Q W_Q K^T / sqrt(d)) V' W_O.
    """

    takes_prefix = False  # W_A is of positions, which a prefix token has not
    normalised_rows = False

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        input_size: int | tuple[int, int] = (14, 14),
        single_head: bool = True,
        q_bias: bool = True,
    ):
        super().__init__(dim, num_heads, single_head, q_bias)
        self.size = to_pair(input_size, "input_size")
        self.alignment = nn.Parameter(torch.eye(self.size[0] * self.size[1]))  # W_A

    def align(self, x: Tensor) -> Tensor:
        """W_A times the values of a map ``[B, H, W, C]``."""
        size = (x.shape[1], x.shape[2])
        if size == self.size:
            return (self.alignment @ x.flatten(1, 2)).unflatten(1, size)
        small = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.size).flatten(2)  # [B, C, N0]
        mixed = (small @ self.alignment.T).unflatten(2, self.size)
        return F.interpolate(mixed, size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``[B, H, W, C] -> [B, H, W, C]``; prefix tokens are not defined."""
        self._check(x, prefix)
        tokens = x.flatten(1, 2)
        q = self.split(self.q(tokens))  # [B, h, N, d]
        k, v = self.split(tokens).to(q.dtype), self.split(self.align(x).flatten(1, 2)).to(q.dtype)
        return self.proj(self.join(dense_attention(q, k, v))).unflatten(1, (x.shape[1], x.shape[2]))

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: the softmax times W_A, what the input is weighted by; rows need not sum to 1."""
        self._check(x)
        H, W = x.shape[1], x.shape[2]
        unit = torch.eye(H * W, dtype=x.dtype, device=x.device).reshape(1, H, W, H * W)
        return self.weights(x.flatten(1, 2)) @ self.align(unit).flatten(1, 2)

    def flops(self, height: int, width: int) -> int:
        positions = self.size[0] * self.size[1]
        return super().flops(height, width) + positions * positions * self.dim

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input_size={self.size}"
