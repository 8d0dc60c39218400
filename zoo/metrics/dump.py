"""Predictions of a whole data set in one file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmengine.dist as dist
from torch import Tensor

from zoo.files import write_file
from zoo.metrics.base import SampleMetric


class PredictionDump(SampleMetric):
    """Write every sample's path, label and best classes as JSON; it adds no scalar to the log.

    The file holds ``{"classes": [...] or null, "predictions": [...]}``, a prediction being ``{"img_path", "sample_idx",
    "gt_label", "pred_label", "labels": [k], "scores": [k]}`` with the k best classes, best first.

    Args:
        out_file: where to write.
        topk: how many classes to list, at most.
    """

    default_prefix = "dump"

    def __init__(self, out_file: str | os.PathLike, topk: int = 5, prefix: str | None = None):
        super().__init__(prefix)
        if topk < 1:
            raise ValueError(f"topk={topk} must be at least 1")
        self.out_file = Path(out_file)
        self.topk = topk

    def measure(self, targets: Tensor, scores: Tensor, samples: Sequence[dict]) -> list[dict[str, Any]]:
        best = scores.topk(min(self.topk, scores.shape[1]), dim=1)
        return [
            {
                "img_path": sample.get("img_path"),
                "sample_idx": sample.get("sample_idx"),
                "gt_label": target,
                "pred_label": labels[0],
                "labels": labels,
                "scores": values,
            }
            for sample, target, labels, values in zip(
                samples, targets.tolist(), best.indices.tolist(), best.values.tolist()
            )
        ]

    def summarise(self, results: list[dict[str, Any]]) -> dict[str, float]:
        if dist.is_main_process():
            classes = None if self.classes is None else list(self.classes)
            write_file(self.out_file, json.dumps({"classes": classes, "predictions": results}, indent=1))
        return {}
