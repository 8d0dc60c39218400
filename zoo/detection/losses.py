"""Losses of single predictions: focal, dice."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, num_boxes: float | Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss: the mean over dimension 1, summed over the others, divided by the number of boxes.

    Args:
        logits: ``[B, Q, ...]``.
        targets: the same shape, 0 or 1.
        num_boxes: what the sum is divided by.
        alpha: weight of the positives, 1 - alpha that of the negatives; negative for no weights.
        gamma: how much less easy examples count.

    Source: Focal Loss for Dense Object Detection (arXiv:1708.02002), eq. 5.
    """
    p = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    loss = loss * (1 - (p * targets + (1 - p) * (1 - targets))) ** gamma
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss.mean(1).sum() / num_boxes


def dice_loss(logits: Tensor, targets: Tensor, num_boxes: float | Tensor) -> Tensor:
    """One minus the Dice coefficient of masks ``[N, pixels]`` as logits, summed and divided by the number of boxes."""
    p = logits.sigmoid().flatten(1)
    overlap = 2 * (p * targets).sum(1)
    return (1 - (overlap + 1) / (p.sum(-1) + targets.sum(-1) + 1)).sum() / num_boxes
