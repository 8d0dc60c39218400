"""Guided context gating: the authors' two layers, whose maps have the channels last."""

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import guided_context_gating as importer

NETWORKS = ()


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    x = inputs[""].movedim(-1, 1)
    context, gated = model.maps(x)
    return {"context": context.movedim(1, -1), "gated": gated.movedim(1, -1), "pooled": model(x)}
