"""MHE: all heads share one projection and differ by an embedding each.

Pit One Against Many: Leveraging Attention-head Embeddings for Parameter-efficient Multi-head Attention (EMNLP Findings
2023, arXiv 2310.07911). No authors' code was read; this follows the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import linear_flops
from zoo.mixers.sequence import SequenceMixer
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention

MODES = ("add", "multiply")


@register_mixer(name="mhe")
class HeadEmbeddingAttention(SequenceMixer):
    """Softmax attention whose heads are one shared projection plus, or times, a head's own embedding.

    Args:
        dim: channels C.
        num_heads: attention heads n; a head has d = C / n channels.
        mode: "add": q + e (MHE-Add); "multiply": q * (1 + e) (MHE-Mul); for queries, keys and values alike.
        qkv_bias: bias of the shared projection.

    Raises:
        ValueError: ``mode`` is neither.

    Source: the paper's two ways to combine projection and embedding, of 3 C d + 3 n d parameters against 3 C n d.
    """

    def __init__(self, dim: int, num_heads: int = 8, mode: str = "multiply", qkv_bias: bool = False):
        super().__init__(dim, num_heads)
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: accepted are {', '.join(map(repr, MODES))}")
        self.mode = mode
        self.qkv = TokenLinear(dim, 3 * self.head_dim, bias=qkv_bias)
        self.embedding = nn.Parameter(torch.empty(3, num_heads, 1, self.head_dim))  # of queries, keys and values
        self.no_decay = ("embedding",)
        self.proj = TokenLinear(dim, dim)
        nn.init.trunc_normal_(self.embedding, std=0.02)

    def _qkv(self, tokens: Tensor) -> Tensor:
        """``[3, B, heads, N, d]`` of ``[B, N, C]``."""
        shared = self.qkv(tokens).unflatten(2, (3, self.head_dim)).permute(2, 0, 1, 3).unsqueeze(2)  # [3, B, 1, N, d]
        embedding = self.embedding.unsqueeze(1)  # [3, 1, h, 1, d]
        return shared + embedding if self.mode == "add" else shared * (1 + embedding)

    def mix(self, tokens: Tensor) -> Tensor:
        q, k, v = self._qkv(tokens).unbind(0)
        return self.proj(self.join(dense_attention(q, k, v)))

    def weights(self, tokens: Tensor) -> Tensor:
        """``[B, heads, N, N]``, rows sum to 1."""
        q, k, _ = self._qkv(tokens).unbind(0)
        return (self.head_dim**-0.5 * q @ k.transpose(-1, -2)).softmax(-1)

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        return linear_flops(tokens, self.qkv, self.proj) + 2 * tokens * tokens * self.dim

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"
