"""DN-DETR's criterion: the family's, and the losses of the queries that restore noised objects.

DN-DETR (arXiv:2203.01305), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.detection.criterion import SetCriterion, Targets
from zoo.detection.denoising import Denoising
from zoo.detection.matcher import HungarianMatcher

KINDS = ("loss_ce", "loss_bbox", "loss_giou", "class_error")


class DNCriterion(SetCriterion):
    """Losses of DN-DETR; arguments as :class:`zoo.detection.criterion.SetCriterion`, ``eps`` 1e-6 and parts logged.

    Losses of the denoising queries are called ``tgt_...``, have the weights of the others and are divided by the
    number of these queries.
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

    def weight_of(self, name: str) -> float | None:
        return super().weight_of(name.removeprefix("tgt_"))

    def forward(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """As the family's, and ``tgt_loss_ce`` ... of the last layer, ``tgt_loss_ce_0`` ... of the others.

        In evaluation, and where no image has an object, these are zero.
        """
        losses = super().forward(outputs, targets)
        layers = len(outputs.get("aux_outputs", ()))
        dn = outputs.get("dn_outputs") if self.training else None
        if dn is None:
            zero = outputs["pred_logits"].new_zeros(())
            suffixes = ("", *(f"_{i}" for i in range(layers)))
            return losses | {f"tgt_{kind}{suffix}": zero for kind in KINDS for suffix in suffixes}
        queries: Denoising = outputs["denoising"]
        for layer, suffix in ((dn, ""), *((a, f"_{i}") for i, a in enumerate(dn["aux_outputs"]))):
            losses |= {f"tgt_{k}{suffix}": v for k, v in self.restored(layer, queries).items()}
        return losses

    def restored(self, outputs: Mapping[str, Tensor], queries: Denoising) -> dict[str, Tensor]:
        """The losses of the queries that stand for objects, as of one image that has nothing else."""
        logits, boxes = (outputs[k][queries.where][None] for k in ("pred_logits", "pred_boxes"))
        every = torch.arange(len(queries.labels))
        target = [{"labels": queries.labels, "boxes": queries.clean_boxes}]
        count = torch.tensor(float(len(every)), device=logits.device)
        one = {"pred_logits": logits, "pred_boxes": boxes}
        found = self.loss_labels(one, target, [(every, every)], count, log=True)
        return {
            k: v
            for k, v in (found | self.loss_boxes(one, target, [(every, every)], count, False)).items()
            if k in KINDS
        }
