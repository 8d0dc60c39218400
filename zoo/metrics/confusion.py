"""Confusion matrix of single-label classification."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import mmengine.dist as dist
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from zoo.files import write_file
from zoo.metrics.base import SampleMetric


def confusion_matrix(targets: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Counts int64 ``[num_classes, num_classes]``: rows are true classes, columns predicted ones."""
    if num_classes == 1:  # torchmetrics takes two classes or more
        return torch.tensor([[targets.numel()]])
    return multiclass_confusion_matrix(predictions, targets, num_classes=num_classes).long()


class LabelMetric(SampleMetric):
    """A metric of true and predicted labels; a subclass gives :meth:`summarise_labels`."""

    def measure(self, targets: Tensor, scores: Tensor, samples: Sequence[dict]) -> list[tuple[int, int, int]]:
        return [(t, p, scores.shape[1]) for t, p in zip(targets.tolist(), scores.argmax(1).tolist())]

    def summarise(self, results: list[tuple[int, int, int]]) -> dict[str, float]:
        targets, predictions, sizes = torch.tensor(results).T
        num_classes = int(sizes.max())
        classes = tuple(self.classes or map(str, range(num_classes)))
        if len(classes) != num_classes:
            raise ValueError(f"the data set has {len(classes)} classes, but the model scores {num_classes}")
        return self.summarise_labels(targets, predictions, classes)

    def summarise_labels(self, targets: Tensor, predictions: Tensor, classes: tuple[str, ...]) -> dict[str, float]:
        """Scalars from true and predicted labels ``[N]``."""
        raise NotImplementedError


class ConfusionMatrix(LabelMetric):
    """How often each class is taken for each: :attr:`matrix` after evaluation, and a JSON file.

    It adds no scalar to the log.

    Args:
        out_file: where to write ``{"classes": [...], "matrix": rows}``, rows being true classes; None: nowhere.
    """

    default_prefix = "confusion"

    def __init__(self, out_file: str | os.PathLike | None = None, prefix: str | None = None):
        super().__init__(prefix)
        self.out_file = None if out_file is None else Path(out_file)
        self.matrix: Tensor | None = None

    def summarise_labels(self, targets: Tensor, predictions: Tensor, classes: tuple[str, ...]) -> dict[str, float]:
        self.matrix = confusion_matrix(targets, predictions, len(classes))
        if self.out_file is not None and dist.is_main_process():
            write_file(self.out_file, json.dumps({"classes": list(classes), "matrix": self.matrix.tolist()}))
        return {}
