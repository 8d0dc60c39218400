"""Losses over what a backbone hands out beside its logits: attention maps, balance of heads, distances to prompts.

Attention diversification: Robustifying Token Attention for Vision Transformers (ICCV 2023, arXiv 2303.11126, section
3.2, eq. 4-5). A loss names what it reads (see :mod:`zoo.layers.records`); a config lists them:
``model = dict(type=ImageClassifier, ..., auxiliary=[dict(type=AttentionDiversificationLoss)])``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.registry import Registry

AUXILIARY = Registry("auxiliary loss", ())


class AttentionDiversificationLoss(nn.Module):
    """Mean over the layers of the cosine similarity between each query's attention and the queries' mean.

    Attention is averaged over the heads first, and what is not above ``threshold / N`` of N tokens is left out, in each
    row and in the mean.

    Args:
        threshold: weight in units of an even distribution's that attention must exceed to count.
        weight: factor on the result.
        squeeze_batch: with a batch of one image compare with the mean over the keys, which is 1 / N everywhere, instead
            of over the queries: what the authors' code does, whose ``squeeze`` drops the batch.

    Raises:
        ValueError: a negative threshold; (in ``forward``) no layers.
    """

    #: what a backbone must record for it
    reads: ClassVar[str] = "attention"

    def __init__(self, threshold: float = 2.0, weight: float = 1.0, squeeze_batch: bool = False):
        super().__init__()
        if threshold < 0:
            raise ValueError(f"threshold={threshold}: accepted are numbers from 0")
        self.threshold, self.weight, self.squeeze_batch = threshold, weight, squeeze_batch

    def forward(self, attention: Sequence[Tensor]) -> Tensor:
        """A number, from ``[B, heads, N, N]`` a layer (after the softmax)."""
        if not attention:
            raise ValueError("attention is empty; accepted is at least one layer")
        total = torch.stack([self._layer(a) for a in attention]).sum()
        return self.weight * total / (len(attention) + 1e-6)

    def _layer(self, attention: Tensor) -> Tensor:
        rows = attention.float().mean(1)  # [B, N, N]
        over = -1 if self.squeeze_batch and rows.shape[0] == 1 else 1
        mean = rows.mean(over, keepdim=True)  # [B, 1, N], or [1, N, 1]
        least = self.threshold / rows.shape[-1]
        rows, mean = (torch.where(t > least, t, 0.0) for t in (rows, mean))
        return F.cosine_similarity(mean, rows, dim=-1, eps=1e-8).mean()


class LoadBalanceLoss(nn.Module):
    """Mean over the layers of a mixture of heads' balance terms, times ``weight`` (arXiv 2410.11842, eq. 8-9)."""

    #: what a backbone must record for it
    reads: ClassVar[str] = "balance"

    def __init__(self, weight: float = 0.01):
        super().__init__()
        self.weight = weight

    def forward(self, balance: Sequence[Tensor]) -> Tensor:
        """A number, from one a layer."""
        if not balance:
            raise ValueError("balance is empty; accepted is at least one layer")
        return self.weight * torch.stack(list(balance)).float().mean()


class MatchingLoss(nn.Module):
    """Distance of tokens to the keys of the prompts that they were given, times ``weight`` (arXiv 2505.02406)."""

    #: what a backbone must record for it
    reads: ClassVar[str] = "matching"

    def __init__(self, weight: float = 0.1):
        super().__init__()
        self.weight = weight

    def forward(self, matching: Sequence[Tensor]) -> Tensor:
        """A number, from one for each network of prompts."""
        if not matching:
            raise ValueError("matching is empty; accepted is at least one network of prompts")
        return self.weight * torch.stack(list(matching)).float().sum()


AUXILIARY.register(AttentionDiversificationLoss, name="attention_diversification")
AUXILIARY.register(LoadBalanceLoss, name="load_balance")
AUXILIARY.register(MatchingLoss, name="matching")
