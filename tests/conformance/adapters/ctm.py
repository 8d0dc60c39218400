"""Fixtures of the Continuous Thought Machine: whole machines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import ctm as importer


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Predictions, certainties and output synchronisation of our machine with the authors' weights."""
    model = build(importer.config_from_official(entry, kwargs, state), MODELS)
    model.load_state_dict(importer.convert_state_dict(entry, state))
    model.eval()
    (x,) = inputs.values()
    with torch.no_grad():
        thoughts = model.think(x)
    return {
        "predictions": thoughts.predictions,
        "certainties": thoughts.certainties,
        "synch_out": thoughts.synch_out,
    }
