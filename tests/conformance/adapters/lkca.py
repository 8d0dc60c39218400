"""LKCA's fixtures: whole networks in both views, blocks as [B, tokens, C]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import lkca as importer

#: entries that are whole networks, as they are recorded
NETWORKS = (importer.CNN, importer.VIT, f"{importer.VIT} (with .to('cuda') removed)")


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    x = inputs["x"] if "x" in inputs else inputs[""]
    found: dict[str, Tensor] = {}
    model.patch_embed.register_forward_hook(lambda _module, _args, out: found.update(embed=out.flatten(1, 2)))
    maps, trunk = model.forward_trunk(x)
    blocks = {f"block{i}": m.flatten(2).transpose(1, 2) for i, m in enumerate(maps)}
    return {**found, **blocks, "logits": model.forward_head(trunk)}
