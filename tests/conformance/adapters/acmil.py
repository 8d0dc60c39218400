"""ACMIL: its heads on bags one by one, with their losses, in evaluation or with masking on."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.medical.acmil import acmil_losses
from zoo.registry import MODELS, build
from zoo.weights.importers import acmil as importer

NETWORKS = importer.NETWORKS


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    masking = kwargs.get("train_masking", False)
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    if entry == importer.PROJECTION:
        return {"": model(inputs[""])}
    model.train(masking)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    found = {}
    for name, bag in inputs["x"].items():
        out = model(bag)
        found[name] = {
            "slide_logits": out.logits,
            "sub_logits": out.parts,
            "attention": out.scores,
            "losses": acmil_losses(out, inputs["label"][name]),
        }
        if entry == importer.GATED:
            found[name]["bag_feature"] = model.pool(bag, masking)
    return found
