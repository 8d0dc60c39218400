"""AEM: multiple-instance heads whose attention is kept from collapsing by a bonus on its entropy.

AEM: Attention Entropy Maximization for Multiple Instance Learning based Whole Slide Image Classification (arXiv
2406.15303), with ABMIL (arXiv 1802.04712), DSMIL (arXiv 2011.08939) and a multi-head query. Authors' code:
github.com/dazhangyu123/AEM (no licence file).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.medical.mil import BagOutput, FeatureProjection, GatedScores, QueryPooling, attention_entropy, check_bag


class ABMIL(nn.Module):
    """Gated attention pooling and a linear classifier.

    Args:
        in_dim: width of the patch features.
        dim: width that they are projected to.
        num_classes: classes.
        hidden: width inside the gated attention.
        dropout: before the classifier.

    Raises:
        ValueError: a bag of another shape than ``[1, N, in_dim]``.
    """

    in_chans = 0  # a bag has no axis of channels

    def __init__(
        self, in_dim: int = 512, dim: int = 256, num_classes: int = 2, hidden: int = 128, dropout: float = 0.0
    ):
        super().__init__()
        self.in_dim, self.num_classes = in_dim, num_classes
        self.project = FeatureProjection(in_dim, dim)
        self.attention = GatedScores(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> BagOutput:
        """A bag ``[1, N, in_dim]`` to its logits and scores ``[1, 1, N]``."""
        features = self.project(check_bag(x, self.in_dim))
        scores = self.attention(features)
        return BagOutput(self.head(self.dropout(scores.softmax(-1) @ features)), scores[None])


class QueryMIL(nn.Module):
    """Multi-head attention of one learned query and a linear classifier (``MHA`` of the authors).

    Args:
        in_dim, dim, num_classes: see :class:`ABMIL`.
        num_heads: heads, which divide ``dim``.
    """

    in_chans = 0  # a bag has no axis of channels

    def __init__(self, in_dim: int = 512, dim: int = 256, num_classes: int = 2, num_heads: int = 8):
        super().__init__()
        self.in_dim, self.num_classes = in_dim, num_classes
        self.project = FeatureProjection(in_dim, dim)
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 1e-6)
        self.attention = QueryPooling(dim, num_heads)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> BagOutput:
        """A bag ``[1, N, in_dim]`` to its logits and scores ``[heads, 1, N]``."""
        features = self.project(check_bag(x, self.in_dim))
        scores = self.attention.scores(self.query[0], features)
        return BagOutput(self.head(self.attention(scores.softmax(-1), features)), scores)


class DSMIL(nn.Module):
    """Two streams: every patch is classified, and a bag is pooled by likeness to each class's most typical patch.

    Args:
        in_dim: width of the patch features, which are not projected.
        dim: width of the queries, or of their hidden layer.
        num_classes: classes.
        nonlinear: queries of a hidden layer and 128 tanh units, else linear.
        values: pool ReLU of a linear layer of the features, with ``dropout`` before it, else the features.
        dropout: see ``values``.

    Raises:
        ValueError: a bag of another shape than ``[1, N, in_dim]``.
    """

    in_chans = 0  # a bag has no axis of channels

    def __init__(
        self,
        in_dim: int = 512,
        dim: int = 256,
        num_classes: int = 2,
        nonlinear: bool = False,
        values: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.in_dim, self.num_classes = in_dim, num_classes
        self.patches = nn.Linear(in_dim, num_classes)
        self.query: nn.Module = nn.Linear(in_dim, dim)
        if nonlinear:
            self.query = nn.Sequential(nn.Linear(in_dim, dim), nn.ReLU(), nn.Linear(dim, 128), nn.Tanh())
        self.values: nn.Module = nn.Identity()
        if values:
            self.values = nn.Sequential(nn.Dropout(dropout), nn.Linear(in_dim, in_dim), nn.ReLU())
        self.head = nn.Conv1d(num_classes, num_classes, in_dim)

    def forward(self, x: Tensor) -> BagOutput:
        """A bag ``[1, N, in_dim]`` to its logits, scores ``[num_classes, N]`` and the patches' logits ``[N, C]``."""
        features = check_bag(x, self.in_dim)
        parts = self.patches(features)
        queries = self.query(features)  # [N, d]
        typical = self.query(features[parts.argmax(0)])  # [C, d]
        scores = typical @ queries.transpose(0, 1) * queries.shape[-1] ** -0.5  # [C, N]
        pooled = scores.softmax(-1) @ self.values(features)  # [C, in_dim]
        return BagOutput(self.head(pooled[None]).view(1, -1), scores, parts)


def bag_probabilities(output: BagOutput) -> Tensor:
    """Probabilities ``[1, C]`` of a bag; the mean of both streams where patches are classified too."""
    probabilities = output.logits.softmax(-1)
    if output.parts is None:
        return probabilities
    return 0.5 * output.parts.amax(0, keepdim=True).softmax(-1) + 0.5 * probabilities


def aem_losses(output: BagOutput, label: Tensor, weight: float = 0.1, top_k: int | None = None) -> dict[str, Tensor]:
    """Cross entropy of a bag, and ``weight`` times the negative entropy of its attention.

    Args:
        output: of :class:`ABMIL`, :class:`QueryMIL` or :class:`DSMIL`; the latter's cross entropy is that of both
            streams, half each.
        label: ``[1]``.
        weight: of the entropy.
        top_k: for a single row of scores, the entropy of the so many largest weights alone.

    Returns:
        ``bag``; ``div``, a mean over heads (classes in DSMIL); ``total``; and ``eval_div``, a mean over rows.
    """
    bag = F.cross_entropy(output.logits, label)
    if output.parts is not None:
        bag = 0.5 * F.cross_entropy(output.parts.amax(0, keepdim=True), label) + 0.5 * bag
    scores = output.scores
    rows = scores.shape[:-1].numel()
    div = attention_entropy(scores, top_k if rows == 1 else None) / scores.shape[0]
    entropy = attention_entropy(scores) / rows
    return {"bag": bag, "div": div, "total": weight * div + bag, "eval_div": entropy}
