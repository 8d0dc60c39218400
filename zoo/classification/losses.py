"""Losses of classification (timm's) and the mixing of images within a batch (timm's mixup and cutmix)."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from zoo.registry import Registry, build

LOSSES = Registry("classification loss", ())
LOSSES.register(nn.CrossEntropyLoss, name="cross_entropy")
LOSSES.register(LabelSmoothingCrossEntropy, name="label_smoothing")
LOSSES.register(SoftTargetCrossEntropy, name="soft_target")
LOSSES.register(BinaryCrossEntropy, name="binary_cross_entropy")


def build_loss(spec: Any, *, mixed: bool) -> nn.Module:
    """A loss of logits ``[B, C]`` and targets, from a name, ``dict(type=..., ...)``, a class or a module.

    Args:
        spec: None gives cross entropy, with soft targets where images are mixed.
        mixed: targets are ``[B, C]`` distributions (mixup, cutmix) instead of ``[B]`` classes.

    Raises:
        TypeError: the loss takes no soft targets, which ``mixed`` needs.
    """
    if spec is None:
        return SoftTargetCrossEntropy() if mixed else nn.CrossEntropyLoss()
    loss = build(spec, LOSSES)
    if mixed and isinstance(loss, LabelSmoothingCrossEntropy):
        raise TypeError(
            "LabelSmoothingCrossEntropy takes no mixed targets; with mixup use SoftTargetCrossEntropy, "
            "and give the smoothing to mixup=dict(label_smoothing=...)"
        )
    return loss


class BatchMixup(nn.Module):
    """mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) of a batch, drawn from numpy's global generator.

    A batch of odd size leaves its last image unmixed (timm's own pairs the images of a batch).

    Args:
        num_classes: C.
        mixup_alpha, cutmix_alpha, prob, switch_prob, mode, label_smoothing: of :class:`timm.data.Mixup`.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        if mode not in ("batch", "pair", "elem"):
            raise ValueError(f"mode={mode!r}: accepted are 'batch', 'pair' and 'elem'")
        if mixup_alpha < 0 or cutmix_alpha < 0 or mixup_alpha + cutmix_alpha == 0:
            raise ValueError(
                f"mixup_alpha={mixup_alpha}, cutmix_alpha={cutmix_alpha}: none may be negative, nor both 0"
            )
        self.num_classes = num_classes
        self.smoothing = label_smoothing
        self.mix = Mixup(
            mixup_alpha=mixup_alpha,
            cutmix_alpha=cutmix_alpha,
            prob=prob,
            switch_prob=switch_prob,
            mode=mode,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images ``[B, 3, H, W]`` and targets ``[B, C]`` of images and classes ``[B]``."""
        even = len(images) - len(images) % 2
        if even == len(images):
            return self.mix(images.clone(), labels)  # timm mixes in place
        rest = smooth_one_hot(labels[even:], self.num_classes, self.smoothing)
        if not even:
            return images, rest.to(images.device)
        mixed, targets = self.mix(images[:even].clone(), labels[:even])
        return torch.cat([mixed, images[even:]]), torch.cat([targets, rest.to(targets)])


def smooth_one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """``[B]`` classes as ``[B, C]`` distributions: ``1 - smoothing + smoothing / C`` at the class."""
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + off)
