"""The criterion of mask classification: match, then learn classes and masks.

MaskFormer (arXiv:2107.06278), eq. 2: focal and dice loss over all pixels. Mask2Former (arXiv:2112.01527), section 3.3:
cross-entropy and dice loss at points, most of them where the prediction is least sure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.criterion import global_number, matched, of_targets, with_suffix
from zoo.detection.losses import dice_loss, sigmoid_focal_loss
from zoo.detection.matcher import Indices
from zoo.registry import MODELS, build
from zoo.segmentation.mask_matcher import MASK_LOSSES, MaskMatcher
from zoo.segmentation.point_sampling import RandomPoints, sample_at, uncertain_points

Targets = Sequence[Mapping[str, Tensor]]


class MaskCriterion(nn.Module):
    """Losses of a network that classifies masks.

    Args:
        num_classes: classes, without "no object".
        matcher: finds the pairs: arguments of :class:`~zoo.segmentation.mask_matcher.MaskMatcher`, or a ready one.
        weights: weight of ``loss_ce``, ``loss_mask`` and ``loss_dice`` in the sum, for every layer alike.
        eos_coef: weight of "no object" in the cross-entropy.
        mask_loss: "cross_entropy" or "focal".
        num_points: points at which masks are compared; None for all pixels of the targets.
        oversample, importance: see :func:`~zoo.segmentation.point_sampling.uncertain_points`.
        generator: of the random points, also of the matcher's; None for PyTorch's own.

    Raises:
        ValueError: an unknown loss, a share outside 0 ... 1, fewer candidates than points.
    """

    class_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: Mapping[str, Any] | nn.Module | None = None,
        weights: Mapping[str, float] | None = None,
        eos_coef: float = 0.1,
        mask_loss: str = "cross_entropy",
        num_points: int | None = 12544,
        oversample: float = 3.0,
        importance: float = 0.75,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if mask_loss not in MASK_LOSSES:
            raise ValueError(f"mask_loss={mask_loss!r}: accepted are {', '.join(MASK_LOSSES)}")
        if num_points is not None and num_points < 1:
            raise ValueError(f"num_points={num_points}: accepted are whole numbers from 1, and None")
        if oversample < 1 or not 0 <= importance <= 1:
            raise ValueError(
                f"oversample={oversample}, importance={importance}: accepted are numbers from 1, and from 0 to 1"
            )
        self.num_classes = num_classes
        self.matcher: Any = matcher
        if not isinstance(matcher, nn.Module):
            self.matcher = build({"type": MaskMatcher, **(matcher or {})}, MODELS)
        self.weights = dict(weights or {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0})
        self.mask_loss, self.num_points = mask_loss, num_points
        self.oversample, self.importance = oversample, importance
        self.draw = RandomPoints(generator)
        if generator is not None:
            self.matcher.draw = self.draw
        weight = torch.ones(num_classes + 1)
        weight[-1] = eos_coef
        self.register_buffer("class_weight", weight, persistent=False)

    def weight_of(self, name: str) -> float | None:
        """The weight of a loss by its name, whatever layer its suffix says; None if it is only logged."""
        return next((w for key, w in self.weights.items() if name == key or name.startswith(f"{key}_")), None)

    def forward(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """All losses, each a scalar, by name.

        Args:
            outputs: ``class_logits [B, Q, classes + 1]``, ``mask_logits [B, Q, h, w]`` and, where there are any,
                ``aux_outputs``, a list of the same.
            targets: for each image ``labels [N]`` and ``masks [N, H, W]`` (any dtype; 0 and 1), all of one size.

        Returns:
            Losses of the last layer under their names, those of others with a suffix ``_0``, ``_1``, ...

        Raises:
            FloatingPointError: predictions that are no numbers.
        """
        layers = [outputs, *outputs.get("aux_outputs", ())]
        number = global_number(sum(len(t["labels"]) for t in targets), outputs["class_logits"].device)
        losses: dict[str, Tensor] = {}
        for i, (layer, indices) in enumerate(zip(layers, self.matcher(layers, targets))):
            own = self.layer_losses(layer, targets, indices, number)
            losses |= own if i == 0 else with_suffix(own, str(i - 1))
        return losses

    def layer_losses(
        self, outputs: Mapping[str, Tensor], targets: Targets, indices: Indices, number: Tensor
    ) -> dict[str, Tensor]:
        """``loss_ce``, ``loss_mask`` and ``loss_dice`` of one layer; ``number`` is that of masks in the batch."""
        logits, masks = outputs["class_logits"], outputs["mask_logits"]
        where = matched(indices, logits.device)
        wanted = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
        wanted[where] = of_targets(targets, "labels", indices).to(logits.device)
        loss_ce = F.cross_entropy(logits.transpose(1, 2), wanted, self.class_weight.to(logits))
        masks = masks[where]  # [n, h, w]
        if not len(masks):
            return {"loss_ce": loss_ce, "loss_mask": masks.sum(), "loss_dice": masks.sum()}
        target = of_targets(targets, "masks", indices).to(masks)  # [n, H, W]
        if self.num_points is None:
            x = F.interpolate(masks[:, None], size=target.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
            x, target = x.flatten(1), target.flatten(1)
        else:
            points = uncertain_points(masks.detach(), self.num_points, self.oversample, self.importance, self.draw)
            x = sample_at(masks[:, None], points)[:, 0]
            with torch.no_grad():
                target = sample_at(target[:, None], points)[:, 0]
        if self.mask_loss == "focal":
            loss_mask = sigmoid_focal_loss(x, target, number)
        else:
            loss_mask = F.binary_cross_entropy_with_logits(x, target, reduction="none").mean(1).sum() / number
        return {"loss_ce": loss_ce, "loss_mask": loss_mask, "loss_dice": dice_loss(x, target, number)}
