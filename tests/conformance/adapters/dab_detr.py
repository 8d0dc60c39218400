"""DAB-DETR and DAB-Deformable-DETR: the authors' networks over given maps or images."""

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import dab_detr as importer

NETWORKS = (importer.NETWORK, importer.DEFORMABLE)


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
        memory = out["memory"]
        if entry == importer.NETWORK:
            found["intermediate"] = {"memory": memory.transpose(0, 1), "transformer": [out["hs"], out["references"]]}
        else:
            # The first references are the same for all images; the authors give them once.
            steps = [out["hs"], out["init_reference"][0], out["inter_references"]]
            found["intermediate"] = {"memory": memory, "transformer": steps}
    return found | {k: out[k] for k in ("pred_logits", "pred_boxes", "aux_outputs") if k in out}
