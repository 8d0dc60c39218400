"""DINO's criterion: the family's, and the same losses for the denoising queries.

DINO (arXiv:2203.03605), section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.detection.criterion import SetCriterion, Targets, with_suffix
from zoo.detection.matcher import HungarianMatcher, Indices


class DINOCriterion(SetCriterion):
    """Losses of DINO; arguments as :class:`zoo.detection.criterion.SetCriterion`, ``eps`` 1e-6 and parts logged.

    Positives of a denoising group are paired with the objects they were made of, negatives are background.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: Mapping[str, float] | None = None,
        eps: float = 1e-6,
        log_parts: bool = True,
        **options: Any,
    ):
        super().__init__(num_classes, matcher, weights, eps=eps, log_parts=log_parts, **options)

    def forward(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """As the family's, and losses with the suffix ``_dn`` (last layer) and ``_dn_0`` ... (others).

        In evaluation, and where no image has an object, these are zero.
        """
        losses = super().forward(outputs, targets)
        layers = len(outputs.get("aux_outputs", ()))
        dn = outputs.get("dn_outputs") if self.training else None
        if dn is None:
            names = ["loss_ce", "loss_bbox", "loss_giou", "cardinality_error"]
            names += ["loss_xy", "loss_hw"] if self.log_parts else []
            zeros = {name: outputs["pred_logits"].new_zeros(()) for name in names}
            for suffix in ("dn", *(f"dn_{i}" for i in range(layers))):
                losses |= with_suffix(zeros, suffix)
            return losses
        indices = positives(targets, dn["size"], dn["groups"])
        num_boxes = self.num_boxes(outputs, targets) * dn["groups"]
        for layer, suffix in ((dn, "dn"), *((a, f"dn_{i}") for i, a in enumerate(dn["aux_outputs"]))):
            losses |= with_suffix(self.layer_losses(layer, targets, num_boxes, indices), suffix)
        return losses


def positives(targets: Targets, size: int, groups: int) -> Indices:
    """Denoising queries that shall be restored, and their objects, for each image: positives come first in a group."""
    group_size = size // groups
    found = []
    for t in targets:
        objects = torch.arange(len(t["labels"]))
        queries = torch.arange(groups)[:, None] * group_size + objects
        found.append((queries.flatten(), objects.repeat(groups)))
    return found
