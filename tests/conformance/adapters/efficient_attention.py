"""Efficient Attention's fixtures: the module alone, channels first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MIXERS, build
from zoo.weights.importers import efficient_attention as importer

#: entries that are whole networks
NETWORKS: tuple[str, ...] = ()


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our module with the authors' weights."""
    module = build(importer.config_from_official(entry, kwargs), MIXERS).eval()
    module.load_state_dict(importer.convert_state_dict(entry, state))
    return {"": module(inputs[""].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}
