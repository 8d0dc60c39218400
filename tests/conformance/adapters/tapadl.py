"""TAP-ADL's fixtures: both networks with their attentions, and the attention diversification loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.classification.auxiliary import AttentionDiversificationLoss
from zoo.layers.records import recording
from zoo.registry import MODELS, build
from zoo.weights.importers import tapadl as importer

LOSS = "TAPADL_RVT/engine.py:AttentionDiversificationLoss"
#: entries that are whole networks
NETWORKS = (importer.FAN, importer.RVT)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    if entry.split()[0] == LOSS:
        loss = AttentionDiversificationLoss(kwargs.get("th", 2), squeeze_batch=True)
        return {"loss": loss(inputs["attn"]).reshape(1)}
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    x = inputs["x"] if "x" in inputs else inputs[""]
    with recording(model, "attention") as records:
        maps, trunk = model.forward_trunk(x)
    attention = records["attention"]
    embed = model.patch_embed(x)  # [B, H, W, C]
    outputs = {
        "logits": model.forward_head(trunk),
        "attn_first": attention[0],
        "attn_last": attention[-1],
        "adl_th1": AttentionDiversificationLoss(1, squeeze_batch=True)(attention).reshape(1),
    }
    if entry == importer.RVT:
        return outputs | {"embed": embed.permute(0, 3, 1, 2)} | {f"stage{i}": m for i, m in enumerate(maps)}
    return outputs | {"embed": embed.flatten(1, 2)} | {f"block{i}": m for i, m in enumerate(maps)}
