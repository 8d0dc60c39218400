"""Pictures of predictions, attention, training curves and confusions. Names load with their first use."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Prediction": "zoo.viz.predictions",
    "attention_heat": "zoo.viz.attention",
    "attention_rollout": "zoo.viz.attention",
    "collect_attention": "zoo.viz.attention",
    "overlay": "zoo.viz.attention",
    "plot_curves": "zoo.viz.curves",
    "save_attention": "zoo.viz.attention",
    "save_confusion": "zoo.viz.confusion",
    "save_predictions": "zoo.viz.predictions",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'zoo.viz' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
