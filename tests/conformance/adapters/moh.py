"""MoH's fixtures: whole networks, stages as [B, tokens, C], and single attentions with their balance loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.layers.records import recorders, recording
from zoo.registry import MODELS, build
from zoo.weights.importers import moh as importer

#: entries that are whole networks
NETWORKS = (importer.NETWORK,)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    x = inputs["x"] if "x" in inputs else inputs[""]
    if entry == importer.NETWORK:
        maps, pooled = model.forward_trunk(x)
        stages = {f"stage{i}": m.flatten(2).transpose(1, 2) for i, m in enumerate(maps)}
        return {**stages, "pooled": pooled, "logits": model.forward_head(pooled)}
    x = x.unflatten(1, tuple(kwargs["input_resolution"]))
    names = ("balance",) if recorders(model, "balance") else ()
    with recording(model, *names) as records:
        out = model(x).flatten(1, 2)
    return {"out": out} | ({"l_aux": records["balance"][0].reshape(1)} if names else {})
