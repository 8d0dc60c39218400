"""DETR: the authors' network over given maps or images."""

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import detr as importer

NETWORKS = (importer.NETWORK,)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    found: dict[str, Any] = {}
    if "images" in inputs:
        out = model(inputs["images"])
        found["backbone"], found["backbone_mask"] = out["features"], out["masks"]
    else:
        out = model(inputs["features"], inputs["mask"])
        height, width = inputs["features"][-1].shape[-2:]
        memory = out["memory"]
        # The authors' transformer gives tokens first, and the memory as a map.
        found["intermediate"] = {
            "memory": memory.transpose(0, 1),
            "transformer": [out["hs"], memory.transpose(1, 2).unflatten(2, (height, width))],
        }
    return found | {k: out[k] for k in ("pred_logits", "pred_boxes", "aux_outputs") if k in out}
