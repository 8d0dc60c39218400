"""Losses of segmentation, for any number of dimensions.

Each follows an authors' own definition; where the smoothing stands, and what is averaged, differs between them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _one_hot(target: Tensor, classes: int) -> Tensor:
    """``[B, ...]`` of labels to ``[B, classes, ...]``."""
    return F.one_hot(target.long(), classes).movedim(-1, 1)


def _labels(logits: Tensor, target: Tensor) -> Tensor:
    """Labels ``[B, ...]``; a channel axis of one is dropped."""
    if target.dim() == logits.dim() and target.shape[1] == 1:
        target = target[:, 0]
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"target has shape {tuple(target.shape)}: accepted is [B, ...] of logits {tuple(logits.shape)}"
        )
    return target


def soft_dice_loss(logits: Tensor, target: Tensor, smooth: float = 0.01) -> Tensor:
    """1 - mean over images and classes of (2 (I + smooth)) / (P + T + smooth), probabilities by softmax.

    Args:
        logits: ``[B, C, ...]``.
        target: labels ``[B, ...]`` or ``[B, 1, ...]``, background included.
        smooth: stands inside the doubled intersection, as the authors of Attention U-Net have it.
    """
    target = _labels(logits, target)
    p = logits.softmax(1).flatten(2)
    t = _one_hot(target, logits.shape[1]).flatten(2).to(p.dtype)
    score = 2 * ((p * t).sum(-1) + smooth) / (p.sum(-1) + t.sum(-1) + smooth)
    return 1 - score.mean()


def voxel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy of logits ``[B, C, ...]`` over voxels; labels ``[B, ...]`` or ``[B, 1, ...]``."""
    return F.cross_entropy(logits, _labels(logits, target).long())


def _check_same(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(f"target has shape {tuple(target.shape)}: accepted is {tuple(prediction.shape)}")


def squared_dice_loss(prediction: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """C (1 - (2 I + smooth) / (sum p^2 + sum t^2 + smooth)), over all voxels and classes at once.

    Args:
        prediction: probabilities ``[B, C, ...]``.
        target: of the same shape, 0 to 1.
    """
    _check_same(prediction, target)
    inter = (prediction * target).sum()
    score = (2 * inter + smooth) / (prediction.square().sum() + target.square().sum() + smooth)
    return prediction.shape[1] * (1 - score)


def jaccard_loss(prediction: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Sum over classes of 1 - (I + smooth) / (sum p^2 + sum t^2 - I + smooth).

    Args:
        prediction: probabilities ``[B, C, ...]``.
        target: of the same shape, 0 to 1.
    """
    _check_same(prediction, target)
    p, t = (x.movedim(1, 0).flatten(1) for x in (prediction, target))  # [C, B * voxels]
    inter = (p * t).sum(1)
    union = p.square().sum(1) + t.square().sum(1) - inter
    return (1 - (inter + smooth) / (union + smooth)).sum()


def focal_tversky_loss(
    prediction: Tensor, target: Tensor, alpha: float = 0.7, beta: float = 0.3, gamma: float = 4 / 3, smooth: float = 1.0
) -> Tensor:
    """Sum over classes of (1 - (I + s) / (I + alpha FN + beta FP + s)) ** (1 / gamma) (arXiv 1810.07842).

    Args:
        prediction: probabilities ``[B, C, ...]``.
        target: of the same shape, 0 to 1.
        alpha: weight of the missed; ``beta``: of the wrongly found.
    """
    _check_same(prediction, target)
    p, t = (x.movedim(1, 0).flatten(1) for x in (prediction, target))  # [C, B * voxels]
    inter = (p * t).sum(1)
    missed, wrong = ((1 - p) * t).sum(1), (p * (1 - t)).sum(1)
    index = (inter + smooth) / (inter + alpha * missed + beta * wrong + smooth)
    # a root has no slope at 0, which a perfect prediction would reach
    return (1 - index).clamp_min(1e-12).pow(1 / gamma).sum()


def deep_supervision_loss(
    loss: Callable[[Tensor, Tensor], Tensor], predictions: list[Tensor], target: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The mean of a loss over predictions of several sizes, and each; targets are thinned out, not interpolated.

    Args:
        loss: of a prediction and a target of its shape.
        predictions: ``[B, C, ...]``, of sizes that divide the target's.
        target: ``[B, C, ...]`` at full size.

    Raises:
        ValueError: a size that does not divide the target's.
    """
    found = []
    for p in predictions:
        steps = [a // b for a, b in zip(target.shape[2:], p.shape[2:])]
        if any(s * b != a for s, a, b in zip(steps, target.shape[2:], p.shape[2:])):
            raise ValueError(f"a prediction has size {tuple(p.shape[2:])}: it has to divide {tuple(target.shape[2:])}")
        thinned = (slice(None), slice(None), *(slice(None, None, s) for s in steps))
        found.append(loss(p, target[thinned]))
    return torch.stack(found).mean(), found
