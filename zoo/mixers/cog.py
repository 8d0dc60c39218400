"""Cog attention: weights that may be negative.

More Expressive Attention with Negative Weights (arXiv 2411.07176, "SignExp"): the weight of a key is the softmax of the
absolute score, with the sign of the score. Authors' code: github.com/trestad/CogAttn, not read: this follows the paper.
"""

from __future__ import annotations

from torch import Tensor

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import linear_flops
from zoo.mixers.sequence import SequenceMixer
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


@register_mixer(name="cog")
class CogAttention(SequenceMixer):
    """Attention over all pairs with signed weights: ``sign(S) exp|S| / sum exp|S|``, S = q k^T / sqrt(d).

    Args:
        dim: channels C.
        num_heads: attention heads.
        qkv_bias: bias of the projection to queries, keys and values.

    Source: the paper's SignExp equation. The absolute values of a row sum to 1, the row itself does not.
    """

    normalised_rows = False

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = True):
        super().__init__(dim, num_heads)
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim)

    def mix(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(t) for t in self.qkv(tokens).chunk(3, dim=-1))  # [B, h, N, d]
        return self.proj(self.join(dense_attention(q, k, v, score="cog")))

    def weights(self, tokens: Tensor) -> Tensor:
        """``[B, heads, N, N]``, signed; the absolute values of a row sum to 1."""
        q, k, _ = (self.split(t) for t in self.qkv(tokens).chunk(3, dim=-1))
        scores = self.head_dim**-0.5 * q @ k.transpose(-1, -2)
        return scores.sign() * scores.abs().softmax(-1)

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        return linear_flops(tokens, self.qkv, self.proj) + 2 * tokens * tokens * self.dim
