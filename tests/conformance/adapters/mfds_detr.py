"""MFDS-DETR: the authors' network over given maps, and its losses."""

from typing import Any

import torch
from torch import Tensor

from zoo.detection.criterion import SetCriterion
from zoo.detection.matcher import HungarianMatcher
from zoo.registry import MODELS, build
from zoo.weights.importers import mfds_detr as importer

NETWORKS = (importer.NETWORK,)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    out = model(inputs["features"], inputs["mask"])
    found = {k: out[k] for k in ("pred_logits", "pred_boxes", "aux_outputs", "enc_outputs", "memory") if k in out}
    found["fpn"] = out["levels"]
    if "targets" in inputs:
        criterion = SetCriterion(kwargs["num_classes"], HungarianMatcher(2, 5, 2))
        found["losses"] = criterion(out, inputs["targets"])
    return found
