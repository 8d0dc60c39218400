"""MALA's fixtures: the network, whose layers are recorded after the merging that ends them, and both attentions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MIXERS, MODELS, build
from zoo.weights.importers import mala as importer

#: entries that are whole networks
NETWORKS = (importer.NETWORK,)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    registry = MODELS if entry == importer.NETWORK else MIXERS
    model = build(importer.config_from_official(entry, kwargs), registry).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    x = inputs["x"]
    if entry != importer.NETWORK:
        out = model(x.permute(0, 2, 3, 1), tables=(inputs["sin"], inputs["cos"]))
        return {"out": out.permute(0, 3, 1, 2)}
    maps, _ = model.forward_trunk(x)
    layers = [*(merge(m) for merge, m in zip(model.merges, maps)), maps[-1]]
    return {"logits": model.forward_classifier(x)} | {f"layer{i}": m for i, m in enumerate(layers)}
