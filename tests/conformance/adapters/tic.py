"""TiC's fixtures: the MSA-Conv layer, maps as [B, C, H, W]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import tic as importer


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our layer with the authors' weights."""
    layer = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    layer.load_state_dict(importer.convert_state_dict(entry, state))
    x = (inputs["x"] if "x" in inputs else inputs[""]).permute(0, 2, 3, 1)
    return {
        "attn": layer.attn.window_weights(x)[:, 0].permute(0, 3, 1, 2),
        "msa": layer.attn(x).permute(0, 3, 1, 2),
        "out": layer(x).permute(0, 3, 1, 2),
    }
