"""Neural Attention: a small network scores each pair of query and key, in place of the dot product.

Neural Attention: A Novel Mechanism for Enhanced Expressive Power in Transformer Models (arXiv 2502.17206). Authors'
code: github.com/awayfromzel/neural-attention-research (MIT; read for facts, see the differences below).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import linear_flops
from zoo.mixers.sequence import SequenceMixer
from zoo.registry import register_mixer

BLOCK_BYTES = 32 << 20  # of hidden activations that are made at once, outside torch.compile and torch.export


@register_mixer(name="neural")
class NeuralAttention(SequenceMixer):
    """``softmax_j(w_a^T relu(W_h [q_i, k_j] + b_h)) v_j`` with queries and keys projected down first.

    W_h [q_i, k_j] is the sum of a part of q_i and a part of k_j, so the pairs are never concatenated; the hidden
    activations of pairs are made for a block of queries at a time.

    Args:
        dim: channels C.
        num_heads: attention heads; they share the network, as in the authors' code.
        projection_dim: channels d' that queries and keys of a head are projected to.
        hidden_dims: hidden layers of the network; the paper's equation has one, the authors' code two of d' and d'/2.
        qkv_bias: bias of the projection to queries, keys and values.

    Raises:
        ValueError: a width below 1 or no hidden layer.

    Source: the paper's equation of AttentionScore. Its b_a moves all scores of a row alike, which the softmax
    takes away again; it is left out.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        projection_dim: int = 16,
        hidden_dims: Sequence[int] = (16,),
        qkv_bias: bool = False,
    ):
        super().__init__(dim, num_heads)
        if projection_dim < 1:
            raise ValueError(f"projection_dim={projection_dim}: accepted are numbers from 1")
        if not hidden_dims or min(hidden_dims) < 1:
            raise ValueError(f"hidden_dims={hidden_dims!r}: accepted are one or more numbers from 1")
        self.hidden_dims = tuple(hidden_dims)
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.q_down = TokenLinear(self.head_dim, projection_dim, bias=False)
        self.k_down = TokenLinear(self.head_dim, projection_dim, bias=False)
        self.hidden_q = TokenLinear(projection_dim, hidden_dims[0])  # both halves of W_h, and b_h
        self.hidden_k = TokenLinear(projection_dim, hidden_dims[0], bias=False)
        self.hidden = nn.ModuleList(TokenLinear(a, b) for a, b in zip(hidden_dims, hidden_dims[1:]))
        self.score = TokenLinear(hidden_dims[-1], 1, bias=False)
        self.proj = TokenLinear(dim, dim)

    def _parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Parts of queries and of keys in the first hidden layer ``[B, h, N, hidden]``, and values ``[B, h, N, d]``."""
        q, k, v = (self.split(t) for t in self.qkv(tokens).chunk(3, dim=-1))
        return self.hidden_q(self.q_down(q)), self.hidden_k(self.k_down(k)), v

    def _weights(self, part_q: Tensor, part_k: Tensor) -> Tensor:
        """``[B, h, n, N]`` of parts ``[B, h, n, hidden]`` and ``[B, h, N, hidden]``."""
        hidden = (part_q.unsqueeze(3) + part_k.unsqueeze(2)).relu()  # [B, h, n, N, hidden]
        for layer in self.hidden:
            hidden = layer(hidden).relu()
        return self.score(hidden).squeeze(-1).softmax(-1)

    def mix(self, tokens: Tensor) -> Tensor:
        part_q, part_k, v = self._parts(tokens)
        B, h, N, width = part_q.shape
        step = N
        if not torch.compiler.is_compiling():
            step = min(N, max(1, BLOCK_BYTES // max(1, 4 * B * h * N * width)))
        # cat and not assignment: each block keeps its own graph
        blocks = [self._weights(part_q[:, :, i : i + step], part_k).to(v.dtype) @ v for i in range(0, N, step)]
        return self.proj(self.join(blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)))

    def weights(self, tokens: Tensor) -> Tensor:
        """``[B, heads, N, N]``, rows sum to 1."""
        part_q, part_k, _ = self._parts(tokens)
        return self._weights(part_q, part_k)

    def flops(self, height: int, width: int) -> int:
        tokens, h = height * width, self.num_heads
        small = linear_flops(tokens * h, self.q_down, self.k_down, self.hidden_q, self.hidden_k)
        pairs = linear_flops(tokens * tokens * h, *self.hidden, self.score)
        return linear_flops(tokens, self.qkv, self.proj) + small + pairs + tokens * tokens * self.dim

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, hidden_dims={self.hidden_dims}"
