"""ACMIL: several attention branches over a bag of patches, kept apart, with their favourites masked in training.

Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification (arXiv 2311.07125). Authors' code:
github.com/dazhangyu123/ACMIL (MIT).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.medical.mil import (
    BagOutput,
    FeatureProjection,
    GatedScores,
    PooledValues,
    QueryPooling,
    attention_entropy,
    check_bag,
    hide_top,
)


def _check_masking(branches: int, masked_patches: int, mask_drop: float) -> None:
    if branches < 1 or masked_patches < 0 or not 0 <= mask_drop <= 1:
        raise ValueError(
            f"branches={branches}, masked_patches={masked_patches}, mask_drop={mask_drop}: accepted are at least 1, "
            "at least 0, and 0 to 1"
        )


class GatedACMIL(nn.Module):
    """ACMIL with gated attention (ACMIL-GA).

    Each branch classifies the bag under its own attention; the bag's logits come from their mean.

    Args:
        in_dim: width of the patch features.
        dim: width that they are projected to.
        num_classes: classes.
        hidden: width inside the gated attention.
        branches: attention branches.
        masked_patches: highest scores of a branch among which some are hidden in training (STKIM); 0 for none.
        mask_drop: fraction of these that is hidden.
        dropout: before the classifiers.

    Raises:
        ValueError: an argument outside the above, or a bag of another shape than ``[1, N, in_dim]``.
    """

    in_chans = 0  # a bag has no axis of channels

    def __init__(
        self,
        in_dim: int = 512,
        dim: int = 256,
        num_classes: int = 2,
        hidden: int = 128,
        branches: int = 5,
        masked_patches: int = 10,
        mask_drop: float = 0.6,
        dropout: float = 0.0,
    ):
        super().__init__()
        _check_masking(branches, masked_patches, mask_drop)
        self.in_dim, self.num_classes = in_dim, num_classes
        self.masked_patches, self.mask_drop = masked_patches, mask_drop
        self.project = FeatureProjection(in_dim, dim)
        self.attention = GatedScores(dim, hidden, branches)
        self.branches = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(branches))
        self.head = nn.Linear(dim, num_classes)
        self.dropout = nn.Dropout(dropout)

    def pool(self, x: Tensor, masked: bool = False) -> Tensor:
        """The feature ``[1, dim]`` of a bag ``[1, N, in_dim]`` under the mean attention; ``masked``: as in training."""
        features = self.project(check_bag(x, self.in_dim))
        return self._scores(features, masked).softmax(-1).mean(0, keepdim=True) @ features

    def _scores(self, features: Tensor, masked: bool) -> Tensor:
        """``[branches, N]``, some of the highest hidden if ``masked``."""
        scores = self.attention(features)
        return hide_top(scores, self.masked_patches, self.mask_drop) if masked and self.masked_patches > 0 else scores

    def forward(self, x: Tensor) -> BagOutput:
        """A bag ``[1, N, in_dim]`` to its logits, scores ``[1, branches, N]`` and the branches' logits."""
        features = self.project(check_bag(x, self.in_dim))
        scores = self._scores(features, self.training)
        weights = scores.softmax(-1)
        pooled = self.dropout(weights @ features)  # [branches, dim]
        parts = torch.stack([branch(f) for branch, f in zip(self.branches, pooled)])
        logits = self.head(self.dropout(weights.mean(0, keepdim=True) @ features))
        return BagOutput(logits, scores[None], parts)


class QueryACMIL(nn.Module):
    """ACMIL with multi-head attention of learned queries (ACMIL-MHA); see :class:`GatedACMIL`.

    Args:
        num_heads: heads, which divide ``dim``.
    """

    in_chans = 0  # a bag has no axis of channels

    def __init__(
        self,
        in_dim: int = 512,
        dim: int = 256,
        num_classes: int = 2,
        branches: int = 5,
        masked_patches: int = 10,
        mask_drop: float = 0.6,
        num_heads: int = 8,
    ):
        super().__init__()
        _check_masking(branches, masked_patches, mask_drop)
        self.in_dim, self.num_classes = in_dim, num_classes
        self.masked_patches, self.mask_drop = masked_patches, mask_drop
        self.project = FeatureProjection(in_dim, dim)
        self.queries = nn.Parameter(torch.randn(1, branches, dim) * 1e-6)
        self.attention = nn.ModuleList(QueryPooling(dim, num_heads) for _ in range(branches))
        self.branches = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(branches))
        self.bag = PooledValues(dim, num_heads)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> BagOutput:
        """A bag ``[1, N, in_dim]`` to its logits, scores ``[heads, branches, N]`` and the branches' logits."""
        features = self.project(check_bag(x, self.in_dim))
        found, parts = [], []
        attention: Any
        for i, (attention, branch) in enumerate(zip(self.attention, self.branches)):
            scores = attention.scores(self.queries[:, i], features)  # [heads, 1, N]
            if self.training and self.masked_patches > 0:
                scores = hide_top(scores, self.masked_patches, self.mask_drop)
            found.append(scores)
            parts.append(branch(attention(scores.softmax(-1), features)))
        scores = torch.cat(found, 1)
        logits = self.head(self.bag(scores.softmax(-1).mean(1, keepdim=True), features))
        return BagOutput(logits, scores, torch.cat(parts))


def branch_similarity(scores: Tensor) -> Tensor:
    """Mean cosine similarity of the attention of two branches, over all pairs and heads; 0 for one branch.

    Args:
        scores: ``[heads, branches, N]``, before the softmax.
    """
    weights = F.normalize(scores.softmax(-1), dim=-1, eps=1e-8)
    K = weights.shape[1]
    if K < 2:
        return scores.new_zeros(())
    first, second = torch.triu_indices(K, K, 1, device=scores.device)
    return (weights[:, first] * weights[:, second]).sum(-1).mean()


def acmil_losses(output: BagOutput, label: Tensor) -> dict[str, Tensor]:
    """Losses of ACMIL for one bag.

    Args:
        output: of a head with branches.
        label: ``[1]``.

    Returns:
        ``sub``, the cross entropy of the branches (0 for a single one); ``slide``, the bag's; ``diff``, the branches'
        similarity; their sum ``total``; and ``eval_div``, the branches' mean negative entropy summed over heads.
    """
    if output.parts is None:
        raise ValueError("output.parts is None: accepted is the output of a head with branches")
    K = output.parts.shape[0]
    slide = F.cross_entropy(output.logits, label)
    sub = F.cross_entropy(output.parts, label.repeat_interleave(K)) if K > 1 else slide.new_zeros(())
    diff = branch_similarity(output.scores)
    entropy = attention_entropy(output.scores) / output.scores.shape[1]
    return {"sub": sub, "slide": slide, "diff": diff, "total": sub + slide + diff, "eval_div": entropy}
