"""Focus-DETR's criterion: DINO's, and a loss for the scores of the foreground.

Less is More: Focus Attention for Efficient DETR (arXiv:2307.12612), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.criterion import Targets
from zoo.detection.dino_criterion import DINOCriterion


def level_ranges(levels: int) -> tuple[tuple[float, float], ...]:
    """Reach of a point to the farthest side of a box, in pixels, that belongs to each level (above, up to).

    Four levels have the paper's 64, 128 and 256 as limits; the last level takes all that is larger.
    """
    limits = [-1.0, *(64.0 * 2**i for i in range(levels - 1)), math.inf]
    return tuple(zip(limits[:-1], limits[1:]))


def foreground_targets(
    boxes: Tensor,
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    ranges: Sequence[tuple[float, float]] | None = None,
) -> Tensor:
    """Which tokens are foreground: strictly inside a box of the size that belongs to the level.

    Args:
        boxes: corners in pixels ``[N, 4]``.
        shapes: (H, W) of each level.
        strides: pixels a token of each level.
        ranges: for each level the reach, from the token to the farthest side of the box, that belongs to it; those of
            :func:`level_ranges` by default.

    Returns:
        ``[S]``, 0 or 1.

    Raises:
        ValueError: another number of strides or ranges than of levels.
    """
    ranges = level_ranges(len(shapes)) if ranges is None else ranges
    if not len(shapes) == len(strides) == len(ranges):
        raise ValueError(
            f"{len(shapes)} levels, {len(strides)} strides and {len(ranges)} ranges: as many of each needed"
        )
    found = []
    for (height, width), stride, (low, high) in zip(shapes, strides, ranges):
        y = torch.arange(height, device=boxes.device) * stride + stride // 2
        x = torch.arange(width, device=boxes.device) * stride + stride // 2
        points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1).to(boxes.dtype)  # [H*W, 2]
        sides = torch.cat([points[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - points[:, None]], dim=-1)
        reach = sides.amax(-1)  # [H*W, N]
        inside = (sides.amin(-1) > 0) & (reach > low) & (reach <= high)
        found.append(inside.any(1))
    return torch.cat(found).to(boxes.dtype)


class FocusCriterion(DINOCriterion):
    """Losses of Focus-DETR; further arguments as :class:`zoo.detection.dino_criterion.DINOCriterion`.

    Args:
        select_weight: weight of the loss of the scores.
    """

    def __init__(self, *args: Any, select_weight: float = 1.5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.weights["select_loss"] = select_weight

    def forward(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """As DINO's, and ``select_loss``."""
        return {**super().forward(outputs, targets), "select_loss": self.loss_foreground(outputs, targets)}

    def targets_of_tokens(self, outputs: Mapping[str, Any], targets: Targets) -> Tensor:
        """``[B, S, 1]``; boxes are scaled to the pixels of each image without its padding."""
        found = []
        for target, (height, width) in zip(targets, outputs["image_sizes"]):
            boxes = cxcywh_to_xyxy(target["boxes"]) * torch.stack([width, height, width, height]).to(target["boxes"])
            found.append(foreground_targets(boxes, outputs["shapes"], outputs["strides"]))
        return torch.stack(found)[..., None].to(outputs["foreground_logits"].device)

    def loss_foreground(self, outputs: Mapping[str, Any], targets: Targets) -> Tensor:
        """Focal loss of the scores, for each image the sum over all tokens by the number of positives, averaged."""
        logits = outputs["foreground_logits"].float()  # [B, S, 1]
        wanted = self.targets_of_tokens(outputs, targets).to(logits)
        p = logits.sigmoid()
        right = torch.where(wanted > 0, p, 1 - p)
        alpha = torch.where(wanted > 0, 0.25, 0.75)
        loss = alpha * (1 - right) ** 2 * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return (loss.sum((1, 2)) / wanted.sum((1, 2)).clamp(min=1)).mean()
