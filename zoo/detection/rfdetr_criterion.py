"""RF-DETR's criterion: groups of queries are matched on their own, and classes learn how well boxes fit.

RF-DETR (arXiv:2511.09554); groups: Group DETR (arXiv:2207.13085); classification: LW-DETR (arXiv:2406.03459), section
3.3, which is Align-DETR's loss (arXiv:2304.07527, eq. 4 and 5). The other losses of the authors' code: VarifocalNet
(arXiv:2008.13367, eq. 2), Stable-DINO's position-supervised loss (arXiv:2304.04742, eq. 5), focal loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.detection.boxes import cxcywh_to_xyxy, paired_generalised_iou
from zoo.detection.criterion import (
    SetCriterion,
    Targets,
    accuracy,
    global_number,
    matched,
    of_targets,
    with_suffix,
)
from zoo.detection.losses import sigmoid_focal_loss
from zoo.detection.matcher import HungarianMatcher, Indices

CLASSIFICATIONS = ("iou_bce", "position", "varifocal", "focal")
GAMMA = 2.0


def corners(boxes: Tensor) -> Tensor:
    """Corners of boxes ``[N, 4]``; a size below 0, which a learned reference can have, counts as 0."""
    return cxcywh_to_xyxy(torch.cat([boxes[:, :2], boxes[:, 2:].clamp(min=0)], dim=1))


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the i-th box of ``a`` with the i-th of ``b``, ``[N]``, from centres and sizes ``[N, 4]``."""
    a, b = corners(a), corners(b)
    size = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    overlap = size.prod(1)
    areas = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    return overlap / (areas - overlap).clamp(min=1e-7)


class RFDETRCriterion(SetCriterion):
    """Losses of every layer and of the first stage, over all groups of queries.

    Args:
        num_classes: outputs of the classifiers.
        matcher: finds the pairs inside a group.
        weights: weight of ``loss_ce``, ``loss_bbox`` and ``loss_giou``.
        losses: of "labels", "boxes" and "cardinality".
        classification: "iou_bce" (a matched query's target is p^alpha iou^(1 - alpha)), "position", "varifocal" or
            "focal".
        focal_alpha: alpha of all of them.
        sum_group_losses: losses of the groups are added; otherwise they are averaged.

    Raises:
        ValueError: an unknown loss or classification.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: Mapping[str, float] | None = None,
        losses: Sequence[str] = ("labels", "boxes", "cardinality"),
        classification: str = "iou_bce",
        focal_alpha: float = 0.25,
        sum_group_losses: bool = False,
    ):
        if not set(losses) <= {"labels", "boxes", "cardinality"}:
            raise ValueError(f"losses={tuple(losses)}: accepted are 'labels', 'boxes' and 'cardinality'")
        if classification not in CLASSIFICATIONS:
            raise ValueError(f"classification={classification!r}: accepted are {', '.join(CLASSIFICATIONS)}")
        super().__init__(num_classes, matcher, weights or {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}, losses)
        self.classification, self.focal_alpha = classification, focal_alpha
        self.sum_group_losses = sum_group_losses

    def forward(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """All losses, each a scalar, by name.

        Args:
            outputs: of :class:`zoo.detection.rfdetr.RFDETR`.
            targets: for each image ``labels [N]`` and ``boxes [N, 4]`` (cx, cy, w, h in 0 ... 1).

        Returns:
            Losses of the last layer under their names, those of others with a suffix ``_0``, those of the first stage
            with ``_enc``.

        Raises:
            ValueError: outputs with masks or keypoints, which would not learn.
        """
        for kind in ("pred_masks", "pred_keypoints"):
            if kind in outputs:
                raise ValueError(
                    f"the detector gives {kind}, which this criterion does not train; it trains boxes only"
                )
        groups = int(outputs.get("groups", 1))
        count = sum(len(t["labels"]) for t in targets) * (1 if self.sum_group_losses else groups)
        num_boxes = global_number(count, outputs["pred_logits"].device)

        def losses_of(layer: Mapping[str, Any], log: bool = False) -> dict[str, Tensor]:
            return self.layer_losses(layer, targets, num_boxes, self.match(layer, targets, groups), log)

        losses = losses_of(outputs, log=True)
        for i, layer in enumerate(outputs.get("aux_outputs", ())):
            losses |= with_suffix(losses_of(layer), str(i))
        if "enc_outputs" in outputs:
            losses |= with_suffix(losses_of(outputs["enc_outputs"]), "enc")
        return losses

    def match(self, outputs: Mapping[str, Any], targets: Targets, groups: int) -> Indices:
        """Pairs of all groups, one group after the other."""
        size = outputs["pred_logits"].shape[1] // groups
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in targets]
        for g in range(groups):
            part = {k: outputs[k][:, g * size : (g + 1) * size] for k in ("pred_logits", "pred_boxes")}
            for pairs, (queries, objects) in zip(found, self.matcher(part, targets)):
                pairs.append((queries + g * size, objects))
        return [(torch.cat([q for q, _ in pairs]), torch.cat([o for _, o in pairs])) for pairs in found]

    def loss_labels(
        self, outputs: Mapping[str, Any], targets: Targets, indices: Indices, num_boxes: Tensor, log: bool
    ) -> dict[str, Tensor]:
        """``loss_ce``; with ``log`` also ``class_error``, the wrong classes among matched queries in percent."""
        logits = outputs["pred_logits"]
        where = matched(indices, logits.device)
        labels = of_targets(targets, "labels", indices).to(logits.device)
        place = (*where, labels)
        wanted = torch.zeros_like(logits)
        if self.classification == "focal":
            wanted[place] = 1.0
            loss = sigmoid_focal_loss(logits, wanted, num_boxes, self.focal_alpha, GAMMA) * logits.shape[1]
        else:
            boxes = outputs["pred_boxes"].detach()[where]
            iou = paired_iou(boxes, of_targets(targets, "boxes", indices).to(boxes)).to(logits)
            loss = getattr(self, f"_{self.classification}")(logits, wanted, place, iou).sum() / num_boxes
        found = {"loss_ce": loss}
        if log:
            found["class_error"] = 100 - accuracy(logits[where], labels)
        return found

    def _iou_bce(self, logits: Tensor, wanted: Tensor, place: tuple[Tensor, ...], iou: Tensor) -> Tensor:
        p = logits.sigmoid()
        target = (p.detach()[place] ** self.focal_alpha * iou ** (1 - self.focal_alpha)).clamp(min=0.01)
        wanted[place] = target
        negative = (p**GAMMA).index_put(place, 1 - target)
        # -wanted log(p) - negative log(1 - p), without leaving logits
        return negative * logits - F.logsigmoid(logits) * (wanted + negative)

    def _varifocal(self, logits: Tensor, wanted: Tensor, place: tuple[Tensor, ...], iou: Tensor) -> Tensor:
        wanted[place] = iou
        p = logits.sigmoid()
        weight = torch.where(wanted > 0, wanted, (1 - self.focal_alpha) * (p - wanted).abs() ** GAMMA)
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weight

    def _position(self, logits: Tensor, wanted: Tensor, place: tuple[Tensor, ...], iou: Tensor) -> Tensor:
        wanted[place] = iou
        wanted = wanted / (wanted.flatten(1).amax(1)[:, None, None] + 1e-8)  # the best of each image becomes 1
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        loss = loss * (wanted - logits.sigmoid()).abs() ** GAMMA
        if self.focal_alpha < 0:
            return loss
        return loss * torch.where(wanted > 0, self.focal_alpha, 1 - self.focal_alpha)

    def loss_boxes(
        self, outputs: Mapping[str, Any], targets: Targets, indices: Indices, num_boxes: Tensor, log: bool
    ) -> dict[str, Tensor]:
        """``loss_bbox`` (L1) and ``loss_giou`` of the matched boxes."""
        boxes = outputs["pred_boxes"][matched(indices, outputs["pred_boxes"].device)]
        wanted = of_targets(targets, "boxes", indices).to(boxes)
        overlap = paired_generalised_iou(corners(boxes), corners(wanted))
        return {"loss_bbox": (boxes - wanted).abs().sum() / num_boxes, "loss_giou": (1 - overlap).sum() / num_boxes}

    @torch.no_grad()
    def loss_cardinality(
        self, outputs: Mapping[str, Any], targets: Targets, indices: Indices, num_boxes: Tensor, log: bool
    ) -> dict[str, Tensor]:
        """``cardinality_error``, for logs: how far the number of queries with a probability above 0.5 is off."""
        logits = outputs["pred_logits"]
        lengths = torch.as_tensor([len(t["labels"]) for t in targets], device=logits.device)
        found = (logits.amax(-1) > 0).sum(1)
        return {"cardinality_error": F.l1_loss(found.float(), lengths.float())}
