"""The set criterion of the DETR family: match, then classify and locate.

End-to-End Object Detection with Transformers (arXiv:2005.12872), eq. 2. One class serves the family; what differs
between its members is options: how classes are scored, an epsilon in the overlaps, and which further outputs there are
(auxiliary layers, a first stage, denoising groups).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.boxes import cxcywh_to_xyxy, paired_generalised_iou
from zoo.detection.losses import dice_loss, sigmoid_focal_loss
from zoo.detection.matcher import HungarianMatcher, Indices

Targets = Sequence[Mapping[str, Tensor]]


def global_number(count: float, device: torch.device) -> Tensor:
    """A count summed over all processes and divided by their number, at least 1 (so that gradients add up right)."""
    total = torch.tensor([float(count)], device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        total = total / dist.get_world_size()
    return total.clamp(min=1)[0]


def matched(indices: Indices, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices (image, query) of all matched queries of the batch."""
    image = torch.cat([torch.full_like(src, i) for i, (src, _) in enumerate(indices)])
    return image.to(device), torch.cat([src for src, _ in indices]).to(device)


def of_targets(targets: Targets, key: str, indices: Indices) -> Tensor:
    """What all matched targets of the batch have under ``key``, in the order of the matched queries."""
    return torch.cat([t[key][j.to(t[key].device)] for t, (_, j) in zip(targets, indices)])


class SetCriterion(nn.Module):
    """Losses of a detector's outputs.

    Args:
        num_classes: classes, without "no object".
        matcher: finds the pairs.
        weights: weight of each kind of loss in the sum: ``loss_ce``, ``loss_bbox``, ``loss_giou`` (and ``loss_mask``,
            ``loss_dice``), for every layer alike.
        losses: of "labels", "boxes", "cardinality" and "masks".
        classification: "focal" (sigmoid) or "softmax" (the last output is "no object").
        focal_alpha: of the focal loss.
        eos_coef: weight of "no object" in the cross entropy.
        eps: in the denominators of the generalised IoU.
        log_parts: also give ``loss_xy`` and ``loss_hw``, the parts of the L1 loss (for logs only).

    Raises:
        ValueError: an unknown loss or classification.
    """

    class_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: Mapping[str, float] | None = None,
        losses: Sequence[str] = ("labels", "boxes", "cardinality"),
        classification: str = "focal",
        focal_alpha: float = 0.25,
        eos_coef: float = 0.1,
        eps: float = 0.0,
        log_parts: bool = False,
    ):
        super().__init__()
        if classification not in ("focal", "softmax"):
            raise ValueError(f"classification={classification!r}: accepted are 'focal' and 'softmax'")
        known = {"labels", "boxes", "cardinality", "masks"}
        if not set(losses) <= known:
            raise ValueError(f"losses={tuple(losses)}: accepted are {', '.join(sorted(known))}")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = dict(weights or {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0})
        self.losses = tuple(losses)
        self.classification, self.focal_alpha = classification, focal_alpha
        self.eps, self.log_parts = eps, log_parts
        weight = torch.ones(num_classes + 1)
        weight[-1] = eos_coef
        self.register_buffer("class_weight", weight, persistent=False)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum; what has no weight is only logged."""
        return sum((losses[k] * w for k in losses if (w := self.weight_of(k)) is not None), torch.tensor(0.0))

    def weight_of(self, name: str) -> float | None:
        """The weight of a loss by its name, whatever layer or stage its suffix says; None if it is only logged."""
        return next((w for key, w in self.weights.items() if name == key or name.startswith(f"{key}_")), None)

    def forward(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """All losses, each a scalar, by name.

        Args:
            outputs: ``pred_logits [B, Q, classes]``, ``pred_boxes [B, Q, 4]``; where there are any, ``aux_outputs`` (a
                list of the same), ``enc_outputs`` (first stage, objects against the rest), ``interm_outputs`` (first
                stage with classes), ``pred_masks``.
            targets: for each image ``labels [N]``, ``boxes [N, 4]`` (cx, cy, w, h in 0 ... 1), and ``masks``.

        Returns:
            Losses of the last layer under their names, those of others with a suffix ``_0``, ``_enc``, ``_interm``.
        """
        num_boxes = self.num_boxes(outputs, targets)
        losses = self.layer_losses(outputs, targets, num_boxes, log=True)
        for i, layer in enumerate(outputs.get("aux_outputs", ())):
            losses |= with_suffix(self.layer_losses(layer, targets, num_boxes), str(i))
        if "interm_outputs" in outputs:
            losses |= with_suffix(self.layer_losses(outputs["interm_outputs"], targets, num_boxes), "interm")
        if "enc_outputs" in outputs:
            objects = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
            losses |= with_suffix(self.layer_losses(outputs["enc_outputs"], objects, num_boxes), "enc")
        return losses

    def num_boxes(self, outputs: Mapping[str, Any], targets: Targets) -> Tensor:
        """Objects of the whole batch over all processes, a process, at least 1."""
        return global_number(sum(len(t["labels"]) for t in targets), outputs["pred_logits"].device)

    def layer_losses(
        self,
        outputs: Mapping[str, Any],
        targets: Targets,
        num_boxes: Tensor,
        indices: Indices | None = None,
        log: bool = False,
    ) -> dict[str, Tensor]:
        """The losses of one set of predictions, matched unless ``indices`` are given."""
        indices = self.matcher(outputs, targets) if indices is None else indices
        found: dict[str, Tensor] = {}
        for name in self.losses:
            if name == "masks" and "pred_masks" not in outputs:
                continue
            found |= getattr(self, f"loss_{name}")(outputs, targets, indices, num_boxes, log)
        return found

    def loss_labels(
        self, outputs: Mapping[str, Any], targets: Targets, indices: Indices, num_boxes: Tensor, log: bool
    ) -> dict[str, Tensor]:
        """``loss_ce``; with ``log`` also ``class_error``, the wrong classes among matched queries in percent."""
        logits = outputs["pred_logits"]
        where = matched(indices, logits.device)
        labels = of_targets(targets, "labels", indices).to(logits.device)
        if self.classification == "softmax":
            wanted = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
            wanted[where] = labels
            loss = F.cross_entropy(logits.transpose(1, 2), wanted, self.class_weight.to(logits))
        else:
            one_hot = torch.zeros_like(logits)
            one_hot[where[0], where[1], labels] = 1.0
            # The mean over queries in the loss is undone, so that their number does not matter.
            loss = sigmoid_focal_loss(logits, one_hot, num_boxes, self.focal_alpha) * logits.shape[1]
        found = {"loss_ce": loss}
        if log:
            found["class_error"] = 100 - accuracy(logits[where], labels)
        return found

    def loss_boxes(
        self, outputs: Mapping[str, Any], targets: Targets, indices: Indices, num_boxes: Tensor, log: bool
    ) -> dict[str, Tensor]:
        """``loss_bbox`` (L1) and ``loss_giou`` of the matched boxes."""
        boxes = outputs["pred_boxes"][matched(indices, outputs["pred_boxes"].device)]
        wanted = of_targets(targets, "boxes", indices).to(boxes)
        l1 = (boxes - wanted).abs()
        overlap = paired_generalised_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted), self.eps)
        found = {"loss_bbox": l1.sum() / num_boxes, "loss_giou": (1 - overlap).sum() / num_boxes}
        if self.log_parts:
            found["loss_xy"] = l1[..., :2].detach().sum() / num_boxes
            found["loss_hw"] = l1[..., 2:].detach().sum() / num_boxes
        return found

    @torch.no_grad()
    def loss_cardinality(
        self, outputs: Mapping[str, Any], targets: Targets, indices: Indices, num_boxes: Tensor, log: bool
    ) -> dict[str, Tensor]:
        """``cardinality_error``, for logs: how far the number of queries whose best class is not the last is off.

        The authors compute it like this for sigmoid classifiers too, where the last class is a class like all others.
        """
        logits = outputs["pred_logits"]
        lengths = torch.as_tensor([len(t["labels"]) for t in targets], device=logits.device)
        found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
        return {"cardinality_error": F.l1_loss(found.float(), lengths.float())}

    def loss_masks(
        self, outputs: Mapping[str, Any], targets: Targets, indices: Indices, num_boxes: Tensor, log: bool
    ) -> dict[str, Tensor]:
        """``loss_mask`` (focal) and ``loss_dice`` of the matched masks, at the size of the largest target."""
        masks = outputs["pred_masks"][matched(indices, outputs["pred_masks"].device)]  # [N, h, w]
        size = [max(t["masks"].shape[d] for t in targets) for d in (1, 2)]
        wanted = torch.cat(
            [
                F.pad(
                    t["masks"][j.to(t["masks"].device)].to(masks),
                    (0, size[1] - t["masks"].shape[2], 0, size[0] - t["masks"].shape[1]),
                )
                for t, (_, j) in zip(targets, indices)
            ]
        ).flatten(1)
        if not len(masks):
            return {"loss_mask": masks.sum(), "loss_dice": masks.sum()}
        masks = F.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].flatten(1)
        return {
            "loss_mask": sigmoid_focal_loss(masks, wanted, num_boxes),
            "loss_dice": dice_loss(masks, wanted, num_boxes),
        }


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right classes in percent; 0 where there is nothing to classify."""
    if labels.numel() == 0:
        return logits.new_zeros(())
    return (logits.argmax(-1) == labels).float().mean() * 100


def with_suffix(losses: Mapping[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """The same losses, their names with ``_suffix``."""
    return {f"{k}_{suffix}": v for k, v in losses.items()}
