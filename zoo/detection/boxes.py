"""Boxes as tensors: formats, overlaps, and the inverse of the sigmoid that their coordinates go through."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """``[..., 4]`` of centre and size to corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """``[..., 4]`` of corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlap(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """IoU and union of broadcastable boxes ``[..., 4]`` as corners."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = _area(a) + _area(b) - intersection
    return intersection / (union + eps), union


def box_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Intersection over union of every pair.

    Args:
        a: ``[N, 4]`` corners (x0, y0, x1, y1).
        b: ``[M, 4]`` corners.
        eps: added to the denominator.

    Returns:
        IoU and union, each ``[N, M]``.
    """
    return _overlap(a[:, None], b[None], eps)


def paired_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Intersection over union of the i-th box of ``a`` with the i-th of ``b``, ``[...]``, from corners ``[..., 4]``."""
    return _overlap(a, b, eps)[0]


def _generalised(a: Tensor, b: Tensor, eps: float) -> Tensor:
    iou, union = _overlap(a, b, eps)
    size = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    hull = size[..., 0] * size[..., 1]
    return iou - (hull - union) / (hull + eps)


def generalised_box_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Generalised IoU of every pair, ``[N, M]`` in (-1, 1], from corners ``[N, 4]`` and ``[M, 4]``.

    Source: arXiv:1902.09630, algorithm 1; ``eps`` is added to both denominators.
    """
    return _generalised(a[:, None], b[None], eps)


def paired_generalised_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Generalised IoU of the i-th box of ``a`` with the i-th of ``b``, ``[...]``, from corners ``[..., 4]``."""
    return _generalised(a, b, eps)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logits of probabilities; ``eps`` bounds what is divided, so that 0 and 1 stay finite."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
