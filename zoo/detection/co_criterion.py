"""Co-DETR's criteria: those of the family, the auxiliary heads' losses, and those of the customised positive queries.

DETRs with Collaborative Hybrid Assignments Training (arXiv:2211.12860), eq. 4 and 6; quality focal loss: Generalized
Focal Loss (arXiv:2006.04388), eq. 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from zoo.detection.boxes import cxcywh_to_xyxy, paired_generalised_iou, paired_iou
from zoo.detection.co_atss import centre_ness
from zoo.detection.co_rpn import flat
from zoo.detection.criterion import SetCriterion, Targets, global_number, matched, of_targets
from zoo.detection.dino_criterion import DINOCriterion
from zoo.detection.matcher import HungarianMatcher, Indices

#: of the overlaps' denominators in pixels
EPS = 1e-7

#: what the losses of the auxiliary heads weigh against each other
HEADS = dict(
    loss_rpn_ce=1.0,
    loss_rpn_bbox=1.0,
    loss_roi_ce=1.0,
    loss_roi_bbox=10.0,
    loss_atss_ce=1.0,
    loss_atss_bbox=2.0,
    loss_atss_centre=1.0,
)


def quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Cross entropy with the quality as the target, weighed by how far off the score is; the sum over classes.

    Args:
        logits: ``[N, classes]``.
        labels: ``[N]``; ``classes`` for background, whose quality is zero in all classes.
        quality: of the class, 0 ... 1, ``[N]``.
        beta: how much less easy examples count.

    Returns:
        ``[N]``.

    Source: arXiv:2006.04388, eq. 4.
    """
    wanted = F.one_hot(labels, logits.shape[1] + 1)[:, :-1] * quality[:, None]
    away = (wanted - logits.sigmoid()).abs() ** beta
    return (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * away).sum(1)


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """torchvision's focal loss of logits ``[N, classes]``, labels ``[N]`` (``classes`` for background): ``[N]``."""
    return sigmoid_focal_loss(logits, F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits)).sum(1)


class CoCriterion(SetCriterion):
    """Losses of Co-Deformable-DETR.

    Args:
        num_classes, matcher, weights, focal_alpha: see :class:`zoo.detection.criterion.SetCriterion`.
        lambda_1: weight of the customised positive queries' losses.
        lambda_2: weight of the auxiliary heads' losses; they also count once for each decoder layer.
        further arguments: of :class:`zoo.detection.criterion.SetCriterion`.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: Mapping[str, float] | None = None,
        lambda_1: float = 1.0,
        lambda_2: float = 2.0,
        losses: Sequence[str] = ("labels", "boxes"),
        eps: float = 1e-12,
        log_parts: bool = False,
        **kwargs: Any,
    ):
        weights = weights or {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
        super().__init__(num_classes, matcher, weights, losses=losses, eps=eps, log_parts=log_parts, **kwargs)
        self.lambda_1 = lambda_1
        self.heads = {k: v * lambda_2 for k, v in HEADS.items()}

    def weight_of(self, name: str) -> float | None:
        head = next((w for key, w in self.heads.items() if name == key or name.startswith(f"{key}_")), None)
        if head is not None:
            return head
        weight = super().weight_of(name)
        return weight * self.lambda_1 if weight is not None and "_aux" in name else weight

    def forward(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """As the family's; of customised positive queries with the suffixes ``_aux0`` (RoI), ``_aux1`` (ATSS) and, for
        layers but the last, ``_aux0_0`` ...; ``loss_rpn_ce_0`` ..., ``loss_rpn_bbox_0`` ..., ``loss_atss_ce_0`` ...,
        ``loss_atss_bbox_0`` ..., ``loss_atss_centre_0`` ... of each map, ``loss_roi_ce``, ``loss_roi_bbox``, all times
        the decoder's layers, and ``roi_accuracy`` in percent."""
        losses = super().forward(outputs, targets)
        if "auxiliary" in outputs:
            layers = len(outputs["aux_outputs"]) + 1
            heads = outputs["auxiliary"]
            found = self.rpn_losses(heads["rpn"]) | self.roi_losses(heads["roi"]) | self.atss_losses(heads["atss"])
            losses |= {k: v * layers if k.startswith("loss") else v for k, v in found.items()}
        pairs = zip(outputs.get("positive_outputs", ()), outputs.get("positive_queries", ()))
        for head, (predictions, queries) in enumerate(pairs):
            for layer, prediction in enumerate(predictions):
                suffix = f"aux{head}" if layer == len(predictions) - 1 else f"aux{head}_{layer}"
                losses |= {f"{k}_{suffix}": v for k, v in self.positive_losses(prediction, queries).items()}
        return losses

    def class_losses(self, logits: Tensor, labels: Tensor, boxes: Tensor, wanted: Tensor) -> Tensor:
        """The classification loss of each query ``[N]``; boxes and what they shall be as (cx, cy, w, h)."""
        return focal_loss(logits, labels)

    def positive_losses(self, outputs: Mapping[str, Tensor], queries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``loss_ce``, ``loss_bbox``, ``loss_giou`` of predictions for queries that know what they stand for."""
        logits, boxes = (outputs[k].flatten(0, 1) for k in ("pred_logits", "pred_boxes"))
        labels, wanted = queries["labels"].flatten(), queries["targets"].flatten(0, 1)
        weights = queries["box_weights"].flatten(0, 1)
        count = global_number(int((labels < self.num_classes).sum()), logits.device)
        overlap = paired_generalised_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted), self.eps)
        each = self.class_losses(logits, labels, boxes, wanted) * queries["label_weights"].flatten()
        return {
            "loss_ce": each.sum() / count,
            "loss_bbox": ((boxes - wanted).abs() * weights).sum() / count,
            "loss_giou": ((1 - overlap) * weights[:, 0]).sum() / count,
        }

    def rpn_losses(self, out: Mapping[str, Any]) -> dict[str, Tensor]:
        """Cross entropy of the sampled anchors and L1 of the positives, of each map, by the number of the sampled."""
        wanted, found = out["wanted"], {}
        parts = (wanted[k].split(wanted["sizes"], dim=1) for k in ("positive", "sampled", "offsets"))
        levels = zip(flat(out["logits"], 1), flat(out["offsets"], 4), *parts)
        for i, (logits, offsets, positive, sampled, places) in enumerate(levels):
            ce = F.binary_cross_entropy_with_logits(logits[..., 0], positive.to(logits), reduction="none")
            found[f"loss_rpn_ce_{i}"] = (ce * sampled).sum() / wanted["count"]
            found[f"loss_rpn_bbox_{i}"] = ((offsets - places).abs() * positive[..., None]).sum() / wanted["count"]
        return found

    def roi_losses(self, out: Mapping[str, Any]) -> dict[str, Tensor]:
        """Cross entropy and generalised overlap of the sampled proposals, by their number."""
        logits, labels = out["logits"], out["labels"]
        count = max(len(labels), 1)
        positive = (labels < self.num_classes).nonzero()[:, 0]
        boxes = out["boxes"][positive, labels[positive]]
        overlap = paired_generalised_iou(boxes, out["targets"][positive], EPS)
        right = (logits.argmax(1) == labels).sum() * 100.0
        return {
            "loss_roi_ce": F.cross_entropy(logits, labels, reduction="sum") / count,
            "loss_roi_bbox": (1 - overlap).sum() / count,
            "roi_accuracy": right / count,
        }

    def atss_losses(self, out: Mapping[str, Any]) -> dict[str, Tensor]:
        """Focal loss of all pixels, overlap and centre-ness of the positives, of each map."""
        wanted, found = out["wanted"], {}
        device = wanted["labels"].device
        count = global_number(wanted["count"], device)
        keys = ("anchors", "labels", "targets", "inside")
        parts = (wanted[k].split(wanted["sizes"], dim=1) for k in keys)
        total = torch.zeros((), device=device)
        maps = zip(
            flat(out["logits"], self.num_classes),
            flat(out["centre"], 1),
            out["boxes"].split(wanted["sizes"], dim=1),
            *parts,
        )
        for i, (logits, centre, boxes, anchors, labels, places, inside) in enumerate(maps):
            ce = focal_loss(logits.flatten(0, 1), labels.flatten()) * inside.flatten()
            positive = labels < self.num_classes
            central = centre_ness(anchors[positive], places[positive])
            overlap = paired_generalised_iou(boxes[positive], places[positive], EPS)
            total = total + central.sum()
            found[f"loss_atss_ce_{i}"] = ce.sum() / count
            found[f"loss_atss_bbox_{i}"] = ((1 - overlap) * central).sum()
            found[f"loss_atss_centre_{i}"] = (
                F.binary_cross_entropy_with_logits(centre[positive][:, 0], central, reduction="sum") / count
            )
        weight = global_number(float(total), device)
        return {k: v / weight if "_bbox_" in k else v for k, v in found.items()}


class CoDINOCriterion(CoCriterion, DINOCriterion):
    """Losses of Co-DINO: classes by the quality focal loss; arguments as :class:`CoCriterion`."""

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: Mapping[str, float] | None = None,
        **kwargs: Any,
    ):
        weights = weights or {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
        super().__init__(num_classes, matcher, weights, **kwargs)

    def class_losses(self, logits: Tensor, labels: Tensor, boxes: Tensor, wanted: Tensor) -> Tensor:
        """The quality of a box is its overlap with what it shall be."""
        overlap = paired_iou(cxcywh_to_xyxy(boxes.detach()), cxcywh_to_xyxy(wanted), self.eps)
        return quality_focal_loss(logits, labels, overlap)

    def loss_labels(
        self, outputs: Mapping[str, Any], targets: Targets, indices: Indices, num_boxes: Tensor, log: bool
    ) -> dict[str, Tensor]:
        """``loss_ce``, of matched queries towards their overlap, of others towards zero."""
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        where = matched(indices, logits.device)
        labels = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        labels[where] = of_targets(targets, "labels", indices).to(logits.device)
        wanted = torch.zeros_like(boxes)
        wanted[where] = of_targets(targets, "boxes", indices).to(boxes)
        each = self.class_losses(*(x.flatten(0, 1) for x in (logits, labels, boxes, wanted)))
        return {"loss_ce": each.sum() / num_boxes}
