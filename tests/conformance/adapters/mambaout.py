"""MambaOut's fixtures: whole networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import mambaout as importer


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names (stages channels-last), computed by our model with the authors' weights."""
    model = build(importer.config_from_official(entry, kwargs), MODELS)
    model.load_state_dict(importer.convert_state_dict(entry, state))
    model.eval()
    (x,) = inputs.values()
    with torch.no_grad():
        maps, trunk = model.forward_trunk(x)
        outputs = {f"stage{i}": m.permute(0, 2, 3, 1) for i, m in enumerate(maps)}
        return {**outputs, "pooled": model.pool(trunk), "logits": model.forward_head(trunk)}
