"""ReLA: rectified linear attention, sparse without a softmax.

Sparse Attention with Linear Units (EMNLP 2021, arXiv 2104.07012). Authors' code: github.com/bzhangGo/zero (not read;
this follows the paper).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import linear_flops
from zoo.mixers.sequence import SequenceMixer
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


class GatedRMSNorm(nn.Module):
    """``sigmoid(w * x) * RMSNorm(x)`` over the last dimension; without the gate RMSNorm alone.

    Args:
        dim: channels C.
        gate: whether there is the gate; its w starts at 1.
        eps: added to the mean square.

    Source: the normalisation of the paper; with the gate it is that of ReLA-g.
    """

    no_decay = ("gate",)

    def __init__(self, dim: int, gate: bool = True, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.gate = nn.Parameter(torch.ones(dim)) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C] -> [..., C]``."""
        x = x.to(self.norm.weight.dtype)  # half precision is normalised in the dtype of the weights
        normed = self.norm(x)
        return normed if self.gate is None else normed * (self.gate * x).sigmoid()


@register_mixer(name="rela")
class RectifiedLinearAttention(SequenceMixer):
    """``LN(relu(q k^T / sqrt(d)) v)``: most weights are exactly zero, and a query may attend to nothing.

    Args:
        dim: channels C.
        num_heads: attention heads.
        gate: gate the norm by the sigmoid of its scaled input (ReLA-g).
        qkv_bias: bias of the projection to queries, keys and values.

    Source: the equation of rectified linear attention. The norm runs over the concatenated heads.
    """

    normalised_rows = False

    def __init__(self, dim: int, num_heads: int = 8, gate: bool = True, qkv_bias: bool = True):
        super().__init__(dim, num_heads)
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.norm = GatedRMSNorm(dim, gate)
        self.proj = TokenLinear(dim, dim)

    def mix(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(t) for t in self.qkv(tokens).chunk(3, dim=-1))  # [B, h, N, d]
        return self.proj(self.norm(self.join(dense_attention(q, k, v, score="relu"))))

    def weights(self, tokens: Tensor) -> Tensor:
        """``[B, heads, N, N]``: non-negative, mostly zero, before the norm."""
        q, k, _ = (self.split(t) for t in self.qkv(tokens).chunk(3, dim=-1))
        return (self.head_dim**-0.5 * q @ k.transpose(-1, -2)).relu()

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        return linear_flops(tokens, self.qkv, self.proj) + 2 * tokens * tokens * self.dim
