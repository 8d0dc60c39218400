"""BiFormer's fixtures: whole networks and single attentions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import biformer as importer

#: entries that are whole networks
NETWORKS = (importer.NETWORK, importer.DENSE_NETWORK, importer.STL, importer.STL_NCHW)


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    model = build(importer.config_from_official(entry, kwargs), MODELS)
    model.load_state_dict(importer.convert_state_dict(entry, state))
    model.eval()
    x = inputs["x"]
    with torch.no_grad():
        if entry in NETWORKS:
            maps, trunk = model.forward_trunk(x)
            outputs = {f"stage{i}": m for i, m in enumerate(maps)}
            return outputs if entry == importer.DENSE_NETWORK else {**outputs, "logits": model.forward_head(trunk)}
        if entry == importer.BRA:
            routed = model.details(x)
            return {
                "out": routed.out,
                "r_weight": routed.weights,
                "r_idx": routed.indices,
                "attn": routed.attention.flatten(0, 1),  # [B*R, heads, Nq, topk*Nk]
            }
        routed = model.details(x.permute(0, 2, 3, 1))
        return {
            "out": routed.out.permute(0, 3, 1, 2),
            "attn": routed.attention.transpose(1, 2),  # [B, heads, R, Nq, topk*Nk]
        }
