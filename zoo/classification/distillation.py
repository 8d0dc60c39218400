"""Distillation into a second token, re-weighted for long-tailed data, and the task model that trains by it.

DeiT (ICML 2021, arXiv 2012.12877, section 3); DeiT-LT (CVPR 2024, arXiv 2404.02900, section 4); class weights by the
effective number of samples (CVPR 2019, arXiv 1901.05555, eq. 4); deferred re-weighting (arXiv 1906.07413, section 3.3).
Authors' code: github.com/val-iisc/DeiT-LT (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.base import Backbone
from zoo.classification.data_sample import ClsDataSample
from zoo.classification.losses import smooth_one_hot
from zoo.classification.model import ImageClassifier
from zoo.registry import MODELS, build

KINDS = ("none", "soft", "hard")


def effective_number_weights(class_counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Tensor:
    """Weight of each class, ``(1 - beta) / (1 - beta^n)`` for n samples, scaled to sum to the number of classes.

    Raises:
        ValueError: ``beta`` outside [0, 1), or a class without samples.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta}: accepted are numbers from 0 up to (not including) 1")
    if counts.ndim != 1 or not len(counts) or bool((counts < 1).any()):
        raise ValueError(f"class_counts={counts.tolist()}: accepted is at least one sample of each class")
    weights = (1 - beta) / (1 - beta**counts)
    return (weights / weights.sum() * len(weights)).float()


class DistillationLoss(nn.Module):
    """``(1 - alpha) * base(class token) + alpha * distillation(distillation token)``.

    ==== =========================================================================================================
    hard cross entropy with the teacher's class; with weights, the weighted mean
    soft KL divergence from the teacher at temperature ``tau``, times ``tau^2``, over the number of logits; with
         weights the teacher's log-probabilities are multiplied by them and divided by their sum, as the authors
         do it (the result is no distribution)
    none no teacher: cross entropy with the labels, for the second token too
    ==== =========================================================================================================

    Args:
        kind: "hard", "soft" or "none".
        alpha: share of the second token's loss.
        tau: temperature of "soft".
        beta: of :func:`effective_number_weights`.
        weighted: use class weights in the second token's loss; :class:`zoo.engine.long_tail.DeferredReweightingHook`
            turns it on later.
        weighted_base: use them, when ``weighted``, in the first token's loss as well.

    Raises:
        ValueError: an argument outside what is accepted; (in ``forward``) weights are wanted and there are none.
    """

    class_weights: Tensor

    def __init__(
        self,
        kind: str = "hard",
        alpha: float = 0.5,
        tau: float = 3.0,
        beta: float = 0.9999,
        weighted: bool = False,
        weighted_base: bool = False,
    ):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: accepted are {', '.join(map(repr, KINDS))}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: accepted are shares from 0 to 1")
        if tau <= 0:
            raise ValueError(f"tau={tau}: accepted are numbers above 0")
        self.kind, self.alpha, self.tau, self.beta = kind, alpha, tau, beta
        self.weighted, self.weighted_base = weighted, weighted_base
        self.register_buffer("class_weights", torch.empty(0), persistent=False)

    def set_class_counts(self, class_counts: Sequence[int] | Tensor) -> None:
        """Weigh classes by how many samples there are of each."""
        self.set_class_weights(effective_number_weights(class_counts, self.beta))

    def set_class_weights(self, weights: Tensor) -> None:
        """Use these weights ``[C]``."""
        self.class_weights = weights.to(self.class_weights.device, torch.float32)

    def _weights(self, classes: int) -> Tensor:
        if len(self.class_weights) != classes:
            raise ValueError(
                f"weighted=True with {len(self.class_weights)} class weights for {classes} classes; "
                f"call set_class_counts first"
            )
        return self.class_weights

    def forward(
        self, logits: Tensor, logits_dist: Tensor, targets: Tensor, teacher_logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its two parts (already multiplied by their shares).

        Args:
            logits, logits_dist: of class and distillation token, ``[B, C]``.
            targets: distributions ``[B, C]``.
            teacher_logits: ``[B, C]``; not read by "none".
        """
        weights = self._weights(logits.shape[1]).to(logits.dtype) if self.weighted else None
        base = cross_entropy(logits, targets, weights if self.weighted_base else None)
        if self.kind == "none":
            second = cross_entropy(logits_dist, targets, weights)
        elif teacher_logits is None:
            raise ValueError(f"kind={self.kind!r} needs teacher_logits")
        elif self.kind == "hard":
            second = F.cross_entropy(logits_dist, teacher_logits.argmax(1), weight=weights)
        else:
            teacher = (teacher_logits / self.tau).log_softmax(1)
            if weights is not None:
                teacher = teacher * weights
                teacher = teacher / teacher.sum(1, keepdim=True)
            student = (logits_dist / self.tau).log_softmax(1)
            second = F.kl_div(student, teacher, reduction="sum", log_target=True) * self.tau**2 / logits_dist.numel()
        base, second = (1 - self.alpha) * base, self.alpha * second
        return base + second, base, second


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Mean cross entropy with distributions ``[B, C]``, classes weighed by ``weights`` ``[C]``."""
    if weights is None:
        return SoftTargetCrossEntropy()(logits, targets)
    return F.cross_entropy(logits, targets, weight=weights)


class DistilledClassifier(ImageClassifier):
    """Trains a backbone with a distillation token, whose second head learns from a teacher.

    Args:
        backbone: as for :class:`~zoo.classification.model.ImageClassifier`; a model with ``forward_both``
            (:class:`~zoo.backbones.deit_lt.DistilledViT`).
        num_classes: classes.
        distillation: arguments of :class:`DistillationLoss`.
        teacher: a backbone's name or ``dict(type=..., ...)``; None with ``kind="none"``. It sees the same augmented
            images as the student and is not trained.
        teacher_weights: file of its weights; None leaves them as they are initialised.
        kwargs: of :class:`~zoo.classification.model.ImageClassifier`, except ``head`` and ``loss``.

    Raises:
        ValueError, TypeError: arguments that do not fit each other.
    """

    config_parts = {**ImageClassifier.config_parts, "distillation": DistillationLoss}

    def __init__(
        self,
        backbone: Any,
        num_classes: int | None = None,
        distillation: dict[str, Any] | None = None,
        teacher: Any = None,
        teacher_weights: str | None = None,
        mixup: dict[str, Any] | None = None,
        grad_checkpointing: bool = False,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
    ):
        super().__init__(
            backbone,
            num_classes,
            mixup=mixup,
            grad_checkpointing=grad_checkpointing,
            data_preprocessor=data_preprocessor,
        )
        if not hasattr(self.backbone, "forward_both"):
            raise TypeError(f"{type(self.backbone).__name__} has no distillation token (no forward_both)")
        self.loss = build({"type": DistillationLoss, **(distillation or {})}, MODELS)
        if (teacher is None) != (self.loss.kind == "none"):
            raise ValueError(
                f"distillation kind {self.loss.kind!r} with teacher={teacher!r}: 'none' takes no teacher, others one"
            )
        self.teacher: Backbone | None = None
        if teacher is not None:
            spec = teacher if isinstance(teacher, dict) else {"type": teacher}
            self.teacher = build({"num_classes": self.num_classes, **spec}, MODELS)
            if teacher_weights is not None and not next(self.teacher.parameters()).is_meta:
                from zoo.weights.load import load_weights

                load_weights(self.teacher, teacher_weights)
            self.teacher.requires_grad_(False)
        self._network_both: Any = self._both

    def _both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the class token and of the distillation token."""
        backbone: Any = self.backbone
        return backbone.forward_both(images)

    def train(self, mode: bool = True) -> DistilledClassifier:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        teacher = getattr(self, "teacher", None)
        if teacher is not None:
            teacher.eval()
        return self

    def compile_network(self, **options: Any) -> None:
        """Compile what maps images to the logits of both heads, and to logits."""
        super().compile_network(**options)
        self._network_both = torch.compile(self._both, **options)

    def forward(
        self, inputs: Tensor, data_samples: list[ClsDataSample] | None = None, mode: str = "tensor"
    ) -> dict[str, Tensor] | list[ClsDataSample] | Tensor:
        """As :class:`~zoo.classification.model.ImageClassifier`; "loss" gives the losses of both tokens."""
        if mode != "loss" or data_samples is None:
            return super().forward(inputs, data_samples, mode)
        targets = self._targets(data_samples).to(inputs.device)
        if self.mixup is not None and self.training:
            inputs, targets = self.mixup(inputs, targets)
        if targets.ndim == 1:
            smoothing = 0.0 if self.mixup is None else self.mixup.smoothing
            targets = smooth_one_hot(targets, self.num_classes, smoothing)
        logits, logits_dist = (t.float() for t in self._network_both(inputs))
        with torch.no_grad():
            teacher = None if self.teacher is None else self.teacher.forward_classifier(inputs).float()
        _, base, second = self.loss(logits, logits_dist, targets.to(logits.device), teacher)
        return {"loss_cls": base, "loss_dist": second}
