"""Top-k accuracy of single-label classification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from zoo.metrics.base import SampleMetric


class Accuracy(SampleMetric):
    """Share of samples whose label is among the k best scored classes, in percent: ``accuracy/top1`` ...

    Args:
        topk: the values of k; one that exceeds the number of classes is clipped to it (its accuracy is 100 %).
        prefix: of the metric names.
    """

    default_prefix = "accuracy"

    def __init__(self, topk: int | Sequence[int] = (1, 5), prefix: str | None = None):
        super().__init__(prefix)
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or min(self.topk) < 1:
            raise ValueError(f"topk={topk} must be one or more positive integers")

    def measure(self, targets: Tensor, scores: Tensor, samples: Sequence[dict]) -> list[list[bool]]:
        classes = scores.shape[1]
        if classes == 1:  # torchmetrics takes two classes or more; of a single one, every k is right
            return [[True] * len(self.topk) for _ in samples]
        hits = [
            multiclass_accuracy(
                scores[:, :, None],  # [B, C, 1]: one "position" a sample, so that each sample gets its own value
                targets[:, None],
                num_classes=classes,
                top_k=min(k, classes),
                average="micro",
                multidim_average="samplewise",
            )
            for k in self.topk
        ]
        return (torch.stack(hits, dim=1) > 0.5).tolist()

    def summarise(self, results: list[list[bool]]) -> dict[str, float]:
        share = torch.tensor(results, dtype=torch.float64).mean(0) * 100
        return {f"top{k}": float(v) for k, v in zip(self.topk, share)}
