"""Losses of semantic segmentation, and the criterion that adds them up over a network's heads.

Cross-entropy with class weights and online hard example mining (arXiv:1604.03540; for pixels as in arXiv:1611.10080),
Dice, focal and Lovasz losses of segmentation-models-pytorch, the boundary loss of MONAI (extra ``medical``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.registry import Registry, build

LOSSES = Registry("segmentation loss", ())


class PixelLoss(nn.Module):
    """Base of the losses: logits ``[B, K, H, W]`` and labels int64 ``[B, H, W]`` to a scalar.

    Args:
        num_classes: K.
        ignore_index: the label of pixels that do not count.
        weight: factor that the criterion's user multiplies the loss by.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, weight: float = 1.0):
        super().__init__()
        self.num_classes, self.ignore_index, self.weight = num_classes, ignore_index, weight

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss; at least one pixel counts."""
        raise NotImplementedError


@LOSSES.register(name="cross_entropy")
class CrossEntropy(PixelLoss):
    """Mean cross-entropy of the pixels that count.

    Args:
        num_classes, ignore_index, weight: see :class:`PixelLoss`.
        class_weights: one for each class; the mean is weighted by them.
        label_smoothing: share of the target that is spread over all classes.
        hard_threshold: online hard example mining: only pixels count whose class has a lower probability than this ...
        hard_min_kept: ... and at least this many in each image, on average over the batch, the hardest ones; without
            ``hard_threshold`` just these.

    Raises:
        ValueError: class weights that are not ``num_classes`` numbers from 0, not all 0; thresholds out of range.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        hard_threshold: float | None = None,
        hard_min_kept: int | None = None,
    ):
        super().__init__(num_classes, ignore_index, weight)
        if hard_threshold is not None and not 0 < hard_threshold < 1:
            raise ValueError(f"hard_threshold={hard_threshold}: accepted are numbers between 0 and 1")
        if hard_min_kept is not None and hard_min_kept < 1:
            raise ValueError(f"hard_min_kept={hard_min_kept}: accepted are whole numbers from 1")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: accepted are numbers from 0 up to (not including) 1")
        self.label_smoothing, self.hard_threshold, self.hard_min_kept = label_smoothing, hard_threshold, hard_min_kept
        self.register_buffer("class_weights", _class_weights(class_weights, num_classes), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(
            logits,
            labels,
            self.class_weights,
            ignore_index=self.ignore_index,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        kept = labels != self.ignore_index
        if self.hard_threshold is not None or self.hard_min_kept is not None:
            kept &= self._hard(logits.detach(), labels, kept)
        weights = kept.to(loss.dtype)
        if self.class_weights is not None:
            weights = weights * self.class_weights[torch.where(kept, labels, 0)]
        # Classes of weight 0 may be all that there is: then the sum is 0, and so is the loss.
        return (loss * kept).sum() / weights.sum().clamp(min=torch.finfo(loss.dtype).tiny)

    def _hard(self, logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        """Which pixels ``[B, H, W]`` are hard."""
        chosen = torch.where(counted, labels, 0)[:, None]
        probability = logits.gather(1, chosen)[:, 0] - logits.logsumexp(1)
        probability = probability.exp().masked_fill(~counted, 2.0)  # behind all that count
        limit = probability.new_tensor(self.hard_threshold or 0.0)
        if self.hard_min_kept is not None:
            number = min(self.hard_min_kept * len(labels), probability.numel())
            limit = torch.maximum(limit, probability.flatten().kthvalue(number).values)
        return probability <= limit


@LOSSES.register(name="dice")
class Dice(PixelLoss):
    """1 - Dice of each class over the batch; classes that the batch does not have count as 0 (V-Net, arXiv:1606.04797).

    Args:
        num_classes, ignore_index, weight: see :class:`PixelLoss`.
        smooth: added to both sides of the fraction.
        log_loss: ``-log(Dice)`` instead.
        class_weights: one for each class.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        weight: float = 1.0,
        smooth: float = 0.0,
        log_loss: bool = False,
        class_weights: Sequence[float] | None = None,
    ):
        super().__init__(num_classes, ignore_index, weight)
        from segmentation_models_pytorch.losses import DiceLoss  # takes longer to import than torch

        weights = _class_weights(class_weights, num_classes)
        own = {} if weights is None else {"class_weights": weights.tolist()}
        self.loss = DiceLoss("multiclass", log_loss=log_loss, smooth=smooth, ignore_index=ignore_index, **own)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss(logits, labels)


@LOSSES.register(name="focal")
class Focal(PixelLoss):
    """The focal loss of each class against the others, mean of pixels and classes (arXiv:1708.02002, eq. 4 and 5).

    Args:
        num_classes, ignore_index, weight: see :class:`PixelLoss`.
        gamma: exponent of the factor ``1 - p``.
        alpha: weight of a pixel's own class, against 1 - alpha of the others; None for no weights.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        weight: float = 1.0,
        gamma: float = 2.0,
        alpha: float | None = None,
    ):
        super().__init__(num_classes, ignore_index, weight)
        from segmentation_models_pytorch.losses import FocalLoss

        self.loss = FocalLoss("multiclass", alpha=alpha, gamma=gamma, ignore_index=ignore_index)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss(logits, labels)


@LOSSES.register(name="lovasz")
class Lovasz(PixelLoss):
    """The Lovasz-Softmax surrogate of the mean IoU over the classes that are there (arXiv:1705.08790).

    Args:
        num_classes, ignore_index, weight: see :class:`PixelLoss`.
        per_image: mean over the images (those with a pixel that counts) instead of over the batch as a whole.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, weight: float = 1.0, per_image: bool = False):
        super().__init__(num_classes, ignore_index, weight)
        from segmentation_models_pytorch.losses import LovaszLoss

        self.per_image = per_image
        self.loss = LovaszLoss("multiclass", ignore_index=ignore_index)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()  # the library's weights are of single precision
        if not self.per_image:
            return self.loss(logits, labels)
        counted = (labels != self.ignore_index).flatten(1).any(1).tolist()
        losses = [self.loss(logits[i : i + 1], labels[i : i + 1]) for i, some in enumerate(counted) if some]
        return torch.stack(losses).mean()


@LOSSES.register(name="boundary")
class Boundary(PixelLoss):
    """Probabilities times the signed distance to the class's border, mean of pixels, classes and images (1812.07032).

    It is negative where the prediction is right, and meant to be added to a loss of regions. Distances are computed on
    the CPU, for every class that an image has.

    Args:
        num_classes, ignore_index, weight: see :class:`PixelLoss`. Pixels that do not count have the probability 0, and
            are outside of every class.
        include_background: whether class 0 counts.

    Raises:
        ImportError: MONAI is missing, or a version without this loss.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, weight: float = 1.0, include_background: bool = True):
        super().__init__(num_classes, ignore_index, weight)
        try:
            from monai.losses import BoundaryLoss
        except ImportError as error:
            raise ImportError("the boundary loss is MONAI's (1.6 and above): pip install 'attnzoo[medical]'") from error
        self.loss = BoundaryLoss(include_background=include_background)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        counted = labels != self.ignore_index
        one_hot = F.one_hot(torch.where(counted, labels, 0), self.num_classes) * counted[..., None]
        probability = logits.softmax(1) * counted[:, None]
        return self.loss(probability, one_hot.permute(0, 3, 1, 2).to(probability.dtype))


class SemanticCriterion(nn.Module):
    """Losses of a semantic network: each loss for the logits, and again for each auxiliary head.

    Logits are enlarged to the labels' size (bilinear, half-pixel centres). A batch without a pixel that counts has a
    loss of 0, with a gradient of 0.

    Args:
        num_classes: K.
        loss: a name or a ``dict(type=..., weight=1.0, ...)`` of :data:`LOSSES`, or a list of them; None for
            cross-entropy.
        ignore_index: the label of pixels that do not count.
        auxiliary_weight: factor on the auxiliary heads' losses, one number or one for each head.

    Raises:
        UnknownNameError: an unknown loss.
        TypeError: an argument that a loss does not have.
    """

    def __init__(
        self,
        num_classes: int,
        loss: Any = None,
        ignore_index: int = 255,
        auxiliary_weight: float | Sequence[float] = 0.4,
    ):
        super().__init__()
        specs = [loss or "cross_entropy"] if isinstance(loss, str | Mapping) or not loss else list(loss)
        self.num_classes, self.ignore_index, self.auxiliary_weight = num_classes, ignore_index, auxiliary_weight
        self.losses = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        for spec in specs:
            spec = {"type": spec} if isinstance(spec, str) else dict(spec)
            name = f"loss_{spec['type'] if isinstance(spec.get('type'), str) else spec['type'].__name__}"
            if name in self.losses:
                raise ValueError(f"loss: {spec['type']!r} is listed twice")
            self.losses[name] = build(spec, LOSSES, num_classes=num_classes, ignore_index=ignore_index)
            self.weights[name] = float(self.losses[name].weight)  # type: ignore[arg-type]

    def weight_of(self, name: str) -> float | None:
        """Factor on a loss that :meth:`forward` gives; None for what is only logged."""
        head, _, own = name.rpartition(".")
        if own not in self.weights:
            return None
        if not head:
            return self.weights[own]
        index = int(head.removeprefix("aux"))
        factor = self.auxiliary_weight
        return self.weights[own] * (factor if isinstance(factor, int | float) else factor[index])

    def forward(self, outputs: Mapping[str, Any], labels: Tensor) -> dict[str, Tensor]:
        """Losses without their weights.

        Args:
            outputs: ``logits [B, K, h, w]`` and, where there are auxiliary heads, ``aux``, a list of the same.
            labels: int64 ``[B, H, W]``, classes or the ignore index.

        Returns:
            "loss_<name>", "aux<i>.loss_<name>", and "pixel_accuracy" of the logits.

        Raises:
            ValueError: another number of classes, of images, or of auxiliary heads than was given weights.
        """
        heads = {"": outputs["logits"], **{f"aux{i}.": x for i, x in enumerate(outputs.get("aux") or ())}}
        factor = self.auxiliary_weight
        if not isinstance(factor, int | float) and len(factor) != len(heads) - 1:
            raise ValueError(f"auxiliary_weight={tuple(factor)}, but the network has {len(heads) - 1} auxiliary heads")
        counted = labels != self.ignore_index
        found = {}
        empty = not bool(counted.any())
        for head, logits in heads.items():
            if logits.shape[:2] != (labels.shape[0], self.num_classes):
                wanted = f"[{labels.shape[0]}, {self.num_classes}, h, w]"
                raise ValueError(f"logits have shape {tuple(logits.shape)}; accepted is {wanted}")
            if logits.shape[-2:] != labels.shape[-2:]:
                logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            for name, loss in self.losses.items():
                found[head + name] = logits.sum() * 0 if empty else loss(logits, labels)
            if not head:
                right = (logits.detach().argmax(1) == labels) & counted
                found["pixel_accuracy"] = right.sum() / counted.sum().clamp(min=1)
        return found


def _class_weights(weights: Sequence[float] | None, num_classes: int) -> Tensor | None:
    if weights is None:
        return None
    if len(weights) != num_classes or min(weights) < 0 or max(weights) <= 0:
        raise ValueError(f"class_weights={tuple(weights)}: accepted are {num_classes} numbers from 0, not all 0")
    return torch.tensor(tuple(weights), dtype=torch.float32)
