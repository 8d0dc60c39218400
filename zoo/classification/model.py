"""Image classification: a backbone with its own classifier or any other, losses, and typed predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.classification.auxiliary import AUXILIARY
from zoo.classification.data_sample import ClsDataSample
from zoo.classification.head import HEADS
from zoo.classification.losses import BatchMixup, build_loss, smooth_one_hot
from zoo.layers.records import recording
from zoo.mixers.lora import add_lora
from zoo.registry import MODELS, build

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class ClsPreprocessor(BaseDataPreprocessor):
    """Images to the device, in one batch, normalised.

    Args:
        mean, std: of each channel, for pixels in 0 ... 255; None leaves the pixels in 0 ... 1.
        bgr_input: the images' channels are blue, green, red and are turned round.
        channels_last: memory format of the batch.
        non_blocking: copy to the device without waiting (pinned memory).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] | None = IMAGENET_MEAN,
        std: Sequence[float] | None = IMAGENET_STD,
        bgr_input: bool = False,
        channels_last: bool = False,
        non_blocking: bool = False,
    ):
        super().__init__(non_blocking=non_blocking)
        mean, std = tuple(mean or (0.0,)), tuple(std or (255.0,))
        if min(std) <= 0:
            raise ValueError(f"std={std}: accepted are positive numbers")
        self.bgr_input, self.channels_last = bgr_input, channels_last
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """``dict(inputs=images [3, H, W] uint8 or float, data_samples=...)`` -> the same with ``[B, 3, H, W]`` floats.

        Raises:
            ValueError: the images of the batch differ in size.
        """
        images = data["inputs"]
        if not isinstance(images, Tensor):
            sizes = sorted({tuple(i.shape) for i in images})
            if len(sizes) > 1:
                raise ValueError(f"images of one batch have sizes {sizes}; the transform must make them equal")
            images = torch.stack(list(images))
        images = images.to(self.device, non_blocking=self._non_blocking).float()
        if self.bgr_input:
            images = images.flip(1)
        images = (images - self.mean) / self.std
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        samples = data.get("data_samples")
        return {"inputs": images, "data_samples": None if samples is None else self.cast_data(list(samples))}


def lora_settings(
    targets: Sequence[str] | None = None, r: int = 8, alpha: float = 16.0, dropout: float = 0.0
) -> dict[str, Any]:
    """What ``lora`` may hold; see :func:`zoo.mixers.lora.add_lora`."""
    return {"targets": targets, "r": r, "alpha": alpha, "dropout": dropout}


class ImageClassifier(BaseModel):
    """A classifier of images.

    Args:
        backbone: a model's name, ``dict(type=name or class, ...)``, a class, or a ready module.
        num_classes: classes; None for the backbone's own number.
        head: None for the backbone's own classifier (the authors'), "pooled" or a ``dict(type=..., ...)`` for one over
            the last map.
        loss: a name (:data:`zoo.classification.losses.LOSSES`), a ``dict(type=..., ...)`` or a module; None for cross
            entropy, with soft targets under ``mixup``.
        mixup: arguments of :class:`zoo.classification.losses.BatchMixup`; None mixes nothing.
        score: "softmax", or "sigmoid" for classes that do not exclude each other.
        grad_checkpointing: recompute the backbone's blocks in the backward pass.
        data_preprocessor: arguments of :class:`ClsPreprocessor`, or a ready one.
        auxiliary: further losses in training, each a name (:data:`zoo.classification.auxiliary.AUXILIARY`) or a
            ``dict(type=..., ...)``, over what the backbone records.
        lora: arguments of :func:`zoo.mixers.lora.add_lora`: train low-rank adapters of the mixers' projections (and the
            classifier) instead of the backbone.
    """

    #: What takes the dicts among the arguments that have no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {
        "mixup": BatchMixup,
        "data_preprocessor": ClsPreprocessor,
        "lora": lora_settings,
    }

    def __init__(
        self,
        backbone: Any,
        num_classes: int | None = None,
        head: Any = None,
        loss: Any = None,
        mixup: dict[str, Any] | None = None,
        score: str = "softmax",
        grad_checkpointing: bool = False,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        auxiliary: Sequence[Any] | None = None,
        lora: dict[str, Any] | None = None,
    ):
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = build({"type": ClsPreprocessor, **(data_preprocessor or {})}, MODELS)
        super().__init__(data_preprocessor)
        if score not in ("softmax", "sigmoid"):
            raise ValueError(f"score={score!r}: accepted are 'softmax' and 'sigmoid'")
        own: dict[str, Any] = {}
        if head is not None:
            own["num_classes"] = 0
        elif num_classes is not None:
            own["num_classes"] = num_classes
        self.backbone: Backbone = build(_with(backbone, own), MODELS)
        if head is not None and num_classes is None:
            raise ValueError("a head of its own needs num_classes")
        if head is not None and self.backbone.num_classes:
            raise ValueError("a head of its own needs a backbone without a classifier (num_classes=0)")
        if head is None and not self.backbone.num_classes:
            raise ValueError("the backbone has no classifier: give num_classes, or a head")
        if head is None and num_classes not in (None, self.backbone.num_classes):
            raise ValueError(f"num_classes={num_classes}, but the backbone has {self.backbone.num_classes}")
        self.num_classes: int = num_classes or self.backbone.num_classes
        self.head: nn.Module | None = None
        if head is not None:
            given = {"in_channels": self.backbone.out_channels[-1], "num_classes": self.num_classes}
            self.head = build(head, HEADS, **given)
        self.mixup = build({"type": BatchMixup, "num_classes": self.num_classes, **mixup}, MODELS) if mixup else None
        self.loss = build_loss(loss, mixed=self.mixup is not None)
        self.auxiliary = nn.ModuleList(build(spec, AUXILIARY) for spec in auxiliary or ())
        with recording(self.backbone, *self._recorded()):  # says now what the backbone does not record
            pass
        if grad_checkpointing and len(self.auxiliary):
            raise ValueError("grad_checkpointing recomputes what auxiliary losses read; use one of the two")
        if lora is not None:
            self._adapt(**lora)
        self.score = score
        self._network = self._logits
        if grad_checkpointing:
            self.backbone.set_grad_checkpointing(True)

    def _recorded(self) -> list[str]:
        """What the auxiliary losses read."""
        return [loss.reads for loss in self.auxiliary]  # type: ignore[misc]

    def _adapt(self, **lora: Any) -> None:
        """Freeze the backbone but for low-rank adapters and its classifier."""
        add_lora(self.backbone, **lora)
        last = self.backbone.num_layers() - 1
        for name, parameter in self.backbone.named_parameters():
            if self.backbone.layer_id(name) == last:
                parameter.requires_grad_(True)

    def init_weights(self) -> None:
        """Nothing: the backbone and the head initialise themselves as they are built."""

    def _logits(self, images: Tensor) -> Tensor:
        if self.head is None:
            return self.backbone.forward_classifier(images)
        return self.head(self.backbone.forward_features(images))

    def compile_network(self, **options: Any) -> None:
        """Compile what maps images to logits with ``torch.compile(**options)``; names of parameters stay."""
        self._network = torch.compile(self._logits, **options)

    def forward(
        self, inputs: Tensor, data_samples: list[ClsDataSample] | None = None, mode: str = "tensor"
    ) -> dict[str, Tensor] | list[ClsDataSample] | Tensor:
        """Loss, predictions or logits.

        Args:
            inputs: normalised images ``[B, 3, H, W]``.
            data_samples: one for each image; "loss" reads ``gt_label``.
            mode: "loss" gives ``dict(loss=...)``; "predict" the samples with ``pred_score`` ``[num_classes]`` and
                ``pred_label``; "tensor" the logits ``[B, num_classes]``.

        Raises:
            ValueError: unknown mode, or a label that is no class.
        """
        if mode == "tensor":
            return self._network(inputs)
        if mode == "predict":
            return self._predict(self._network(inputs), data_samples)
        if mode != "loss":
            raise ValueError(f"mode={mode!r}: accepted are 'loss', 'predict' and 'tensor'")
        if data_samples is None:
            raise ValueError("mode='loss' needs data_samples")
        targets = self._targets(data_samples).to(inputs.device)
        if self.mixup is not None and self.training:
            inputs, targets = self.mixup(inputs, targets)
        with recording(self.backbone, *self._recorded()) as records:
            logits = self._network(inputs).float()
        losses = {"loss": self.loss(logits, self._fitting(targets).to(logits.device))}
        return losses | {f"loss_{a.reads}": a(records[a.reads]) for a in self.auxiliary}  # type: ignore[misc,index]

    def _fitting(self, targets: Tensor) -> Tensor:
        """Targets in the form that the loss takes (unmixed classes for one that takes distributions)."""
        if self.mixup is not None and targets.ndim == 1:
            return smooth_one_hot(targets, self.num_classes, self.mixup.smoothing)
        return targets

    def _targets(self, samples: list[ClsDataSample]) -> Tensor:
        """Classes ``[B]``, or ``[B, C]`` of zeros and ones where an image has several labels."""
        labels = [s.gt_label for s in samples]
        flat = torch.cat([label.cpu() for label in labels])
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < self.num_classes:
            raise ValueError(
                f"labels are between {int(flat.min())} and {int(flat.max())}, but the model has "
                f"{self.num_classes} classes (0 to {self.num_classes - 1})"
            )
        if self.score == "softmax":
            if any(label.numel() != 1 for label in labels):
                raise ValueError("an image has several labels; score='sigmoid' with a binary loss takes those")
            return flat
        if self.mixup is not None or not any(label.numel() != 1 for label in labels):
            return flat
        targets = torch.zeros(len(labels), self.num_classes)
        for row, label in zip(targets, labels):
            row[label.cpu()] = 1
        return targets

    def _predict(self, logits: Tensor, samples: list[ClsDataSample] | None) -> list[ClsDataSample]:
        logits = logits.float()
        scores = logits.softmax(-1) if self.score == "softmax" else logits.sigmoid()
        samples = [ClsDataSample() for _ in scores] if samples is None else samples
        for sample, score, label in zip(samples, scores, scores.argmax(-1)):
            sample.set_pred_score(score)
            sample.set_pred_label(label)
        return samples


def _with(spec: Any, arguments: dict[str, Any]) -> Any:
    """A spec with further arguments; a ready module is left as it is. What the spec says wins."""
    if isinstance(spec, nn.Module) or not arguments:
        return spec
    if isinstance(spec, dict):
        clash = {k for k in arguments if k in spec and spec[k] != arguments[k]}
        if clash:
            raise ValueError(f"backbone says {spec}, the classifier says {arguments}: give {', '.join(clash)} once")
        return {**arguments, **spec}
    return {"type": spec, **arguments}
