"""AEM: its heads on bags one by one, with their losses and predictions."""

from typing import Any

import torch
from torch import Tensor

from zoo.medical.aem import aem_losses, bag_probabilities
from zoo.registry import MODELS, build
from zoo.weights.importers import aem as importer

NETWORKS = tuple(f"{name}{importer.LOSS}" for name in importer.NETWORKS)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    script = importer.SCRIPT | kwargs
    found = {}
    for name, bag in inputs["x"].items():
        out = model(bag)
        top_k = script["top_k"] if script["top_k"] > 0 else None
        losses = aem_losses(out, inputs["label"][name], script["lamda"], top_k)
        found[name] = {
            "attention": out.scores,
            "bag_logits": out.logits,
            "instance_logits": out.parts,
            "pred": bag_probabilities(out),
            "bag_loss": losses["bag"],
            "div_loss": losses["div"],
            "eval_div_loss": losses["eval_div"],
            "total": losses["total"],
        }
        if out.parts is None:
            del found[name]["instance_logits"]
    return found
