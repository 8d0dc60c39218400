"""Metrics of classifiers whose labels do not exclude each other: AUC, average precision and F1, by torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.metrics.base import SampleMetric


class MultiLabel(SampleMetric):
    """AUC and average precision of each label and their means, and F1 at a threshold.

    Samples with a single label of classes that exclude each other are taken as one label against the others; with two
    classes ``auc`` is then the usual one. A label that all samples have, or none, has no AUC, and one that none has no
    average precision: they are left out of the means, and NaN where nothing is left.

    Args:
        threshold: from which score on a label counts as given, for F1.
        per_class: add ``auc_<class>`` for each label.
        prefix: of the names.
    """

    def __init__(self, threshold: float = 0.5, per_class: bool = True, prefix: str | None = "labels"):
        super().__init__(prefix=prefix)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold}: accepted are numbers between 0 and 1, exclusive")
        self.threshold, self.per_class = threshold, per_class

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Note labels and scores of one batch.

        Raises:
            ValueError: a sample lacks them, a score is not finite, or a label is no class.
        """
        for sample in data_samples:
            name, label, score = sample.get("img_path", "a sample"), sample.get("gt_label"), sample.get("pred_score")
            if label is None or score is None:
                raise ValueError(f"{name!r} has no {'gt_label' if label is None else 'pred_score'} to evaluate")
            score = torch.as_tensor(score).detach().float().cpu()
            if not torch.isfinite(score).all():
                raise ValueError(f"the scores of {name!r} are not finite numbers; the model has diverged")
            target = torch.zeros(score.numel(), dtype=torch.int64)
            for index in torch.as_tensor(label).reshape(-1).tolist():
                if not 0 <= index < score.numel():
                    raise ValueError(f"{name!r} has label {index}, but the model scores {score.numel()} classes")
                target[index] = 1
            self.results.append((sample.get("sample_idx"), (target, score)))

    def summarise(self, results: list[Any]) -> dict[str, float]:
        targets, scores = (torch.stack(part) for part in zip(*results))  # [n, C]
        names = self.classes or tuple(map(str, range(scores.shape[1])))
        aucs, precisions = label_scores(targets, scores)
        found = {
            "auc": float(aucs.nanmean()),
            "mAP": float(precisions.nanmean()),
            "f1": macro_f1(targets, scores, self.threshold),
        }
        if self.per_class:
            found |= {f"auc_{name}": float(value) for name, value in zip(names, aucs)}
        return found


def label_scores(targets: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """AUC and average precision of each label, NaN where there is none.

    Args:
        targets: int64 ``[n, C]`` of zeros and ones.
        scores: float ``[n, C]``.
    """
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    aucs = torch.full((targets.shape[1],), float("nan"))
    precisions = aucs.clone()
    for c in range(targets.shape[1]):
        positive = int(targets[:, c].sum())
        if positive:
            precisions[c] = binary_average_precision(scores[:, c], targets[:, c])
        if 0 < positive < len(targets):
            aucs[c] = binary_auroc(scores[:, c], targets[:, c])
    return aucs, precisions


def macro_f1(targets: Tensor, scores: Tensor, threshold: float) -> float:
    """Mean over labels of F1; a label that is neither given nor present counts 0."""
    from torchmetrics.functional.classification import binary_f1_score

    values = [binary_f1_score(scores[:, c], targets[:, c], threshold=threshold) for c in range(targets.shape[1])]
    return float(torch.stack(values).mean())
