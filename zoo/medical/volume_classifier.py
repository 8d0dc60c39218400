"""The model that trains to classify volumes, or medical images: any network that gives logits, with its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from zoo.classification.data_sample import ClsDataSample
from zoo.medical.model import VolumePreprocessor
from zoo.registry import MODELS, build

SCORES = ("sigmoid", "softmax")


class VolumeClassifier(BaseModel):
    """A classifier of volumes or images.

    Args:
        network: a model's name ("ct_scroll"), a ``dict(type=name or class, ...)`` or a module from ``[B, C, ...]`` to
            logits ``[B, K]``, or to a list of them: the loss is their mean loss then, a score their mean score.
        num_classes: classes; None for the network's own number.
        score: "sigmoid", labels each of which may be present (binary cross entropy), or "softmax", classes that
            exclude each other (cross entropy).
        pos_weight: for "sigmoid": how much more a label that is present counts in the loss, one number for each class
            (absent over present samples balances them) or one for all.
        data_preprocessor: arguments of :class:`zoo.medical.model.VolumePreprocessor`, or a ready one.

    Raises:
        ValueError: an argument outside the above.
    """

    #: What takes the dicts among the arguments that have no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"data_preprocessor": VolumePreprocessor}

    def __init__(
        self,
        network: Any,
        num_classes: int | None = None,
        score: str = "sigmoid",
        pos_weight: float | Sequence[float] | None = None,
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
    ):
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = build({"type": VolumePreprocessor, **(data_preprocessor or {})}, MODELS)
        super().__init__(data_preprocessor)
        if score not in SCORES:
            raise ValueError(f"score={score!r}: accepted are {', '.join(map(repr, SCORES))}")
        own = {} if num_classes is None else {"num_classes": num_classes}
        if not isinstance(network, nn.Module):
            network = build(dict(network) if isinstance(network, Mapping) else {"type": network}, MODELS, **own)
        self.network: Any = network
        self.num_classes, self.score = int(network.num_classes), score
        if num_classes not in (None, self.num_classes):
            raise ValueError(f"num_classes={num_classes}, but the network has {self.num_classes}")
        self.pos_weight: Tensor | None
        self.register_buffer("pos_weight", None, persistent=False)
        if pos_weight is not None:
            weights = [pos_weight] * self.num_classes if isinstance(pos_weight, int | float) else list(pos_weight)
            if score != "sigmoid" or len(weights) != self.num_classes or min(weights) <= 0:
                raise ValueError(
                    f"pos_weight={pos_weight!r}: accepted are {self.num_classes} positive numbers, with score='sigmoid'"
                )
            self.pos_weight = torch.tensor(weights, dtype=torch.float32)
        self._compiled: list[Any] = []  # in a list, so that it is no second submodule

    def init_weights(self) -> None:
        """Nothing: the network initialises itself as it is built."""

    def compile_network(self, **options: Any) -> None:
        """Compile the network with ``torch.compile(**options)``; names of parameters stay."""
        self._compiled = [torch.compile(self.network, **options)]

    def _logits(self, inputs: Tensor | list[Tensor]) -> list[Tensor]:
        if not isinstance(inputs, Tensor):
            sizes = sorted({tuple(i.shape) for i in inputs})
            raise ValueError(f"volumes of one batch have sizes {sizes}; the data must make them equal")
        out = (self._compiled[0] if self._compiled else self.network)(inputs)
        return [t.float() for t in (out if isinstance(out, list | tuple) else [out])]

    def forward(
        self,
        inputs: Tensor | list[Tensor],
        data_samples: list[ClsDataSample] | None = None,
        mode: str = "tensor",
    ) -> dict[str, Tensor] | list[ClsDataSample] | Tensor:
        """Loss, predictions or logits.

        Args:
            inputs: prepared volumes ``[B, C, ...]``.
            data_samples: one for each; "loss" reads ``gt_label``: class indices ``[n]``, none where no label is there.
            mode: "loss" gives ``dict(loss=...)``; "predict" the samples with ``pred_score`` ``[K]`` and ``pred_label``
                (with "sigmoid" all labels of a score from 0.5 on, possibly none); "tensor" logits ``[B, K]``, the mean
                where the network gives several.

        Raises:
            ValueError: an unknown mode, a label that is no class, sizes that differ, no samples where they are needed.
        """
        if mode not in ("loss", "predict", "tensor"):
            raise ValueError(f"mode={mode!r}: accepted are 'loss', 'predict' and 'tensor'")
        if mode == "loss":
            if data_samples is None:
                raise ValueError("mode='loss' needs data_samples")
            targets = self.targets(data_samples)
            logits = self._logits(inputs)
            targets = targets.to(logits[0].device)
            return {"loss": torch.stack([self._loss(one, targets) for one in logits]).mean()}
        logits = self._logits(inputs)
        if mode == "tensor":
            return torch.stack(logits).mean(0)
        single = [one.sigmoid() if self.score == "sigmoid" else one.softmax(-1) for one in logits]
        scores = torch.stack(single).mean(0)  # [B, K]
        samples = [ClsDataSample() for _ in scores] if data_samples is None else data_samples
        for sample, score in zip(samples, scores, strict=True):
            sample.set_pred_score(score)
            given = (score >= 0.5).nonzero().flatten() if self.score == "sigmoid" else score.argmax()
            sample.set_pred_label(given)
        return samples

    def targets(self, samples: Sequence[ClsDataSample]) -> Tensor:
        """Zeros and ones ``[B, K]``, or with "softmax" classes ``[B]``.

        Raises:
            ValueError: a label is no class, or a sample has not one label where classes exclude each other.
        """
        for sample in samples:
            labels = sample.gt_label
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise ValueError(
                    f"{sample.get('img_path', 'a sample')} has the labels {labels.tolist()}, but the model has "
                    f"{self.num_classes} classes (0 to {self.num_classes - 1})"
                )
            if self.score == "softmax" and labels.numel() != 1:
                raise ValueError(
                    f"{sample.get('img_path', 'a sample')} has {labels.numel()} labels; score='sigmoid' takes those"
                )
        if self.score == "softmax":
            return torch.cat([s.gt_label for s in samples])
        targets = torch.zeros(len(samples), self.num_classes)
        for row, sample in zip(targets, samples):
            row[sample.gt_label.cpu()] = 1
        return targets

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.score == "softmax":
            return F.cross_entropy(logits, targets)
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.pos_weight)
