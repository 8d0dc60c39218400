"""Which query answers for which mask: minimum-cost matching of predicted masks and classes with the targets.

MaskFormer (arXiv:2107.06278), section 3.2: classes, dice and focal cost over all pixels. Mask2Former
(arXiv:2112.01527), section 3.3: classes, dice and cross-entropy over the same random points for all pairs of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.matcher import Indices
from zoo.segmentation.point_sampling import RandomPoints, sample_at

MASK_LOSSES = ("cross_entropy", "focal")


def pairwise_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of every pair: logits ``[Q, P]``, targets ``[N, P]`` in 0 ... 1 -> ``[Q, N]``."""
    # For a target t the loss is softplus(x) - t x.
    return (F.softplus(logits).sum(1)[:, None] - logits @ targets.T) / logits.shape[1]


def pairwise_focal(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Mean focal loss of every pair: logits ``[Q, P]``, targets ``[N, P]`` in 0 ... 1 -> ``[Q, N]``."""
    p = logits.sigmoid()
    positive = alpha * (1 - p) ** gamma * F.softplus(-logits)
    negative = (1 - alpha) * p**gamma * F.softplus(logits)
    return (negative.sum(1)[:, None] + (positive - negative) @ targets.T) / logits.shape[1]


def pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss (smoothed by 1) of every pair: logits ``[Q, P]``, targets ``[N, P]`` -> ``[Q, N]``."""
    p = logits.sigmoid()
    return 1 - (2 * p @ targets.T + 1) / (p.sum(1)[:, None] + targets.sum(1)[None] + 1)


class MaskMatcher(nn.Module):
    """Minimum-cost one-to-one matching, for each image, by ``cost_class * -p(class) + cost_mask * mask + cost_dice *
    dice``.

    Args:
        cost_class, cost_mask, cost_dice: weights.
        num_points: points at which masks are compared; None for all pixels of the predictions (targets are then
            brought to their size by the nearest pixel).
        mask_cost: "cross_entropy" or "focal".

    Raises:
        ValueError: all weights are 0, an unknown cost, fewer than one point.
    """

    def __init__(
        self,
        cost_class: float = 2.0,
        cost_mask: float = 5.0,
        cost_dice: float = 5.0,
        num_points: int | None = 12544,
        mask_cost: str = "cross_entropy",
    ):
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError("cost_class, cost_mask and cost_dice are all 0: at least one must count")
        if mask_cost not in MASK_LOSSES:
            raise ValueError(f"mask_cost={mask_cost!r}: accepted are {', '.join(MASK_LOSSES)}")
        if num_points is not None and num_points < 1:
            raise ValueError(f"num_points={num_points}: accepted are whole numbers from 1, and None")
        self.cost_class, self.cost_mask, self.cost_dice = cost_class, cost_mask, cost_dice
        self.num_points, self.mask_cost = num_points, mask_cost
        self.draw = RandomPoints()

    def cost(self, class_logits: Tensor, mask_logits: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """The cost of every pair ``[Q, N]``.

        Args:
            class_logits: ``[Q, classes + 1]``.
            mask_logits: ``[Q, h, w]``.
            labels: ``[N]``.
            masks: ``[N, H, W]``, of the same image area.
        """
        masks = masks.to(mask_logits.dtype)
        if self.num_points is None:
            x = mask_logits.flatten(1)
            t = F.interpolate(masks[:, None], size=mask_logits.shape[-2:], mode="nearest")[:, 0].flatten(1)
        else:
            points = self.draw(1, self.num_points, mask_logits.device)
            x = sample_at(mask_logits[None], points)[0]  # [Q, P]: masks are channels, so that points are shared
            t = sample_at(masks[None], points)[0]
        pairwise = pairwise_cross_entropy if self.mask_cost == "cross_entropy" else pairwise_focal
        class_cost = -class_logits.softmax(-1)[:, labels]
        return self.cost_mask * pairwise(x, t) + self.cost_class * class_cost + self.cost_dice * pairwise_dice(x, t)

    @torch.no_grad()
    def forward(self, layers: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> list[Indices]:
        """Match several layers' predictions; the device is waited for once.

        Args:
            layers: each ``class_logits [B, Q, classes + 1]`` and ``mask_logits [B, Q, h, w]``.
            targets: for each image ``labels [N]`` and ``masks [N, H, W]``.

        Returns:
            For each layer and image the indices of the matched queries, ascending, and of their targets.

        Raises:
            FloatingPointError: a cost that is not a number, with the number of the image.
        """
        costs = [
            self.cost(layer["class_logits"][i].float(), layer["mask_logits"][i].float(), t["labels"], t["masks"])
            for layer in layers
            for i, t in enumerate(targets)
            if len(t["labels"])
        ]
        flat = torch.cat([c.flatten() for c in costs]).cpu() if costs else torch.empty(0)
        parts = iter(flat.split([c.numel() for c in costs]))
        shapes = iter([c.shape for c in costs])
        empty = torch.empty(0, dtype=torch.int64)
        found: list[Indices] = []
        for number in range(len(layers)):
            pairs = []
            for i, t in enumerate(targets):
                if not len(t["labels"]):
                    pairs.append((empty, empty))
                    continue
                cost = next(parts).view(next(shapes))
                if not cost.isfinite().all():
                    raise FloatingPointError(
                        f"image {i} of the batch has matching costs that are no numbers in layer {number}: its "
                        f"predictions are not finite ({int((~cost.isfinite()).sum())} of {cost.numel()} pairs)"
                    )
                rows, columns = linear_sum_assignment(cost)
                pairs.append((torch.as_tensor(rows), torch.as_tensor(columns)))
            found.append(pairs)
        return found
