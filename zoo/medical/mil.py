"""Parts of multiple-instance heads: a bag of patch features is pooled by attention, whose scores stay with the result.

Attention-based Deep Multiple Instance Learning (arXiv 1802.04712), eq. 8-9; ACMIL (arXiv 2311.07125).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

HIDDEN = -1e9


class BagOutput(NamedTuple):
    """What a head says of one bag of N patches, for C classes."""

    #: logits of the bag [1, C]
    logits: Tensor
    #: scores of the patches before the softmax over them, [heads, branches, N] or [classes, N]: a heat-map's numbers
    scores: Tensor
    #: logits of the branches [branches, C] or of the patches [N, C], where a head has them
    parts: Tensor | None = None


def check_bag(x: Tensor, dim: int) -> Tensor:
    """The patches ``[N, dim]`` of one bag ``[1, N, dim]``.

    Raises:
        ValueError: another shape, several bags, or a bag without patches.
    """
    if x.dim() != 3 or x.shape[0] != 1 or x.shape[1] < 1 or x.shape[2] != dim:
        raise ValueError(f"the bag has shape {tuple(x.shape)}: accepted is [1, N, {dim}], one bag of N >= 1 patches")
    return x[0]


class FeatureProjection(nn.Module):
    """ReLU of a linear layer without bias, and residual pairs of them: ``[..., in_dim] -> [..., dim]``.

    Args:
        in_dim: width of the patch features.
        dim: width of the output.
        residual: pairs.
    """

    def __init__(self, in_dim: int, dim: int = 512, residual: int = 0):
        super().__init__()
        self.linear = nn.Linear(in_dim, dim, bias=False)
        self.residual = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.ReLU())
            for _ in range(residual)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x).relu()
        for pair in self.residual:
            x = x + pair(x)
        return x


class GatedScores(nn.Module):
    """Scores w (tanh(V x) * sigmoid(U x)): ``[N, dim] -> [branches, N]``.

    Args:
        dim: width of the features.
        hidden: width of V and U.
        branches: scores of each patch.
    """

    def __init__(self, dim: int, hidden: int = 128, branches: int = 1):
        super().__init__()
        self.V, self.U = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.weights = nn.Linear(hidden, branches)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(self.V(x).tanh() * self.U(x).sigmoid()).transpose(0, 1)


class PooledValues(nn.Module):
    """LayerNorm of a projection of values pooled with given weights, heads side by side; no residual.

    Args:
        dim: width, a multiple of the heads.
        num_heads: heads.
        dropout: of the projection in training.

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, dim: int, num_heads: int = 8, dropout: float = 0.1):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: accepted is what divides dim={dim}")
        self.num_heads = num_heads
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def pool(self, weights: Tensor, x: Tensor) -> Tensor:
        """Weights ``[heads, 1, N]`` and features ``[N, dim]`` to ``[1, dim]``."""
        v = self.v_proj(x).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # [heads, N, d]
        pooled = (weights @ v).transpose(0, 1).flatten(1)  # [1, heads * d]
        return self.norm(self.dropout(self.out_proj(pooled)))

    def forward(self, weights: Tensor, x: Tensor) -> Tensor:
        return self.pool(weights, x)


class QueryPooling(PooledValues):
    """Attention of one learned query to a bag; its scores are a result too, so that they are made here."""

    def __init__(self, dim: int, num_heads: int = 8, dropout: float = 0.1):
        super().__init__(dim, num_heads, dropout)
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def scores(self, query: Tensor, x: Tensor) -> Tensor:
        """A query ``[1, dim]`` and features ``[N, dim]`` to scaled products ``[heads, 1, N]``."""
        q, k = (f.unflatten(-1, (self.num_heads, -1)).transpose(0, 1) for f in (self.q_proj(query), self.k_proj(x)))
        return q @ k.transpose(1, 2) * q.shape[-1] ** -0.5


def hide_top(scores: Tensor, count: int, fraction: float) -> Tensor:
    """Stochastic top-K instance masking: a random part of the highest scores of each row becomes -1e9.

    Args:
        scores: ``[..., N]``.
        count: the K highest of a row, at most N of them.
        fraction: of these K, int(K * fraction) are hidden.
    """
    K = min(count, scores.shape[-1])
    top = scores.topk(K, dim=-1).indices
    chosen = torch.rand(top.shape, device=scores.device).argsort(-1)[..., : int(K * fraction)]
    hidden = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, top.gather(-1, chosen), True)
    return scores.masked_fill(hidden, HIDDEN)


def attention_entropy(scores: Tensor, top_k: int | None = None) -> Tensor:
    """Sum of p log p, p the softmax of ``scores [..., N]`` over the patches: negative entropies, added up.

    Args:
        top_k: only the so many largest p of a row, scaled to a sum of one; all if None.
    """
    if top_k is None:
        return (scores.softmax(-1) * scores.log_softmax(-1)).sum()
    p = scores.softmax(-1).topk(min(top_k, scores.shape[-1]), dim=-1).values
    p = p / p.sum(-1, keepdim=True)
    return (p * p.log()).sum()
