"""Attention-Gated-Networks: gates, 2-D and 3-D networks with maps from inside, and their losses."""

from typing import Any

import torch
from torch import Tensor

from zoo.medical.losses import soft_dice_loss, voxel_cross_entropy
from zoo.registry import MODELS, build
from zoo.weights.importers import attention_unet as importer

NETWORKS = importer.NETWORKS

#: the authors' modules and ours that make the same map
_INSIDE = {
    **{f"conv{i}": f"encoder.blocks.{i - 1}" for i in range(1, 5)},
    "center": "encoder.center",
    "gating": "gating",
    **{f"attentionblock{i}": f"gates.{i - 2}" for i in (2, 3, 4)},
    **{f"up_concat{i}": f"up.{i - 1}" for i in range(1, 5)},
    **{f"dsv{i}": f"heads.{i - 1}" for i in range(1, 5)},
}
_SONONET = {
    **{f"conv{i}": f"stages.{i - 1}" for i in range(1, 6)},
    **{f"compatibility_score{i}": f"gates.{i - 1}" for i in (1, 2)},
}


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    if entry not in NETWORKS:
        out, attention = model(inputs["x"], inputs["g"])
        return {"out": out, "attention": attention}
    found: dict[str, Any] = {}
    modules = dict(model.named_modules())
    for name, own in (_SONONET if entry == importer.SONONET else _INSIDE).items():
        if own in modules:
            modules[own].register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, out))
    found["logits"] = logits = model(inputs["x"])
    if "target" in inputs:
        found["losses"] = {
            "cross_entropy": voxel_cross_entropy(logits, inputs["target"]),
            "soft_dice": soft_dice_loss(logits, inputs["target"]),
        }
    return found
