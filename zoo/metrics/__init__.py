"""Metrics for mmengine's evaluator over torchmetrics. Names load with their first use."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Accuracy": "zoo.metrics.accuracy",
    "CocoBoxes": "zoo.metrics.coco",
    "CocoMasks": "zoo.metrics.coco_masks",
    "ConfusionMatrix": "zoo.metrics.confusion",
    "PanopticQuality": "zoo.metrics.panoptic",
    "PerClass": "zoo.metrics.per_class",
    "PredictionDump": "zoo.metrics.dump",
    "SemanticSegmentation": "zoo.metrics.semantic",
    "VocBoxes": "zoo.metrics.voc",
    "VolumeMetric": "zoo.metrics.volume",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'zoo.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
