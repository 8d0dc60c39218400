"""Turbolift: its two networks, and the deeply supervised losses over four scales."""

from typing import Any

import torch
from torch import Tensor

from zoo.medical import losses
from zoo.registry import MODELS, build
from zoo.weights.importers import turbolift as importer

NETWORKS = importer.NETWORKS
_LOSSES = {
    "dice_loss": losses.squared_dice_loss,
    "jaccard_loss": losses.jaccard_loss,
    "focal_tversky_loss": losses.focal_tversky_loss,
}


def _row(loss, predictions: list[Tensor], target: Tensor) -> Tensor:
    mean, each = losses.deep_supervision_loss(loss, predictions, target)
    return torch.stack([mean, *each])


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    if entry == importer.VOLUME:
        return {"logits": model(inputs[""])}
    predictions = model(inputs["x"])
    found: dict[str, Any] = {f"pred_{2**n}": p for n, p in zip((3, 2, 1, 0), predictions)}
    if "target" in inputs:
        found["losses"] = {name: _row(loss, predictions, inputs["target"]) for name, loss in _LOSSES.items()}
    return found
