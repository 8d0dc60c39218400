"""STViT's fixtures: whole networks and the bare attention, maps as [B, C, H, W]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import stvit as importer

#: entries that are whole networks
NETWORKS = (importer.NETWORK,)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    x = inputs["x"]
    if entry == importer.ATTENTION:
        return {"out": model(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}
    # the authors' layer ends with the merging that leads to the next one
    merged: list[Tensor] = []
    for level in model.levels[:-1]:
        level.downsample.register_forward_hook(lambda _module, _args, out: merged.append(out.permute(0, 3, 1, 2)))
    maps, trunk = model.forward_trunk(x)
    layers = [*merged, maps[-1]]
    return {"logits": model.forward_head(trunk), **{f"layer{i}": m for i, m in enumerate(layers)}}
