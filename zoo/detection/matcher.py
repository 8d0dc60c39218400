"""Which query answers for which object: minimum-cost matching of predictions and targets.

End-to-End Object Detection with Transformers (arXiv:2005.12872), eq. 1; the focal class cost is Deformable DETR's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from zoo.detection.boxes import cxcywh_to_xyxy, generalised_box_iou

Indices = list[tuple[Tensor, Tensor]]


def focal_class_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """What calling a query each class would add to the focal loss, ``[..., classes]``."""
    p = logits.sigmoid()
    negative = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    return positive - negative


class HungarianMatcher(nn.Module):
    """Minimum-cost one-to-one matching, for each image.

    The cost is ``cost_class * class + cost_bbox * L1 + cost_giou * (-generalised IoU)``.

    Args:
        cost_class, cost_bbox, cost_giou: weights.
        classification: "focal" (sigmoid classifiers) or "softmax" (the last class is "no object").
        focal_alpha: of the focal cost.
        eps: in the denominators of the generalised IoU (0 for DETR, Deformable and Conditional DETR, 1e-6 for DAB-,
            DN-DETR and DINO).

    Raises:
        ValueError: all weights are 0, an unknown classification.
    """

    def __init__(
        self,
        cost_class: float = 2.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        classification: str = "focal",
        focal_alpha: float = 0.25,
        eps: float = 0.0,
    ):
        super().__init__()
        if cost_class == cost_bbox == cost_giou == 0:
            raise ValueError("cost_class, cost_bbox and cost_giou are all 0: at least one must count")
        if classification not in ("focal", "softmax"):
            raise ValueError(f"classification={classification!r}: accepted are 'focal' and 'softmax'")
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou
        self.classification, self.focal_alpha, self.eps = classification, focal_alpha, eps

    def cost(self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
        """The cost of every pair ``[Q, N]``: logits ``[Q, classes]``, boxes ``[Q, 4]``, N labels and boxes."""
        if self.classification == "focal":
            class_cost = focal_class_cost(logits, self.focal_alpha)[:, labels]
        else:
            class_cost = -logits.softmax(-1)[:, labels]
        box_cost = torch.cdist(boxes, target_boxes, p=1)
        overlap = generalised_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes), self.eps)
        return self.cost_bbox * box_cost + self.cost_class * class_cost - self.cost_giou * overlap

    @torch.no_grad()
    def forward(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]) -> Indices:
        """Match.

        Args:
            outputs: ``pred_logits [B, Q, classes]``, ``pred_boxes [B, Q, 4]`` (cx, cy, w, h).
            targets: for each image ``labels [N]`` and ``boxes [N, 4]``.

        Returns:
            For each image the indices of the matched queries, ascending, and of their targets.

        Raises:
            FloatingPointError: a cost that is not a number, with the number of the image.
        """
        found: Indices = []
        for i, target in enumerate(targets):
            logits, boxes = outputs["pred_logits"][i].float(), outputs["pred_boxes"][i].float()
            if len(target["labels"]) == 0:
                found.append((torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)))
                continue
            cost = self.cost(logits, boxes, target["labels"], target["boxes"].float()).cpu()
            if not cost.isfinite().all():
                raise FloatingPointError(
                    f"image {i} of the batch has matching costs that are no numbers: its predictions or boxes are not "
                    f"finite ({int((~cost.isfinite()).sum())} of {cost.numel()} pairs)"
                )
            rows, columns = linear_sum_assignment(cost)
            found.append((torch.as_tensor(rows), torch.as_tensor(columns)))
        return found
