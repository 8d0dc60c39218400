"""GLSim's fixtures: whole networks, with the crops that they look at again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import glsim as importer

#: entries that are whole networks
NETWORKS = (importer.NETWORK,)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    x = inputs["x"] if "x" in inputs else inputs[""]
    tokens, size = model.block_tokens(x)
    encoded = model.normed(tokens[-1])
    outputs = {"logits": model(x), "encoded": encoded} | {f"block{i}": t for i, t in enumerate(tokens)}
    return outputs | ({"images_crops": model.crop(x, encoded, size)} if model.crops else {})
