"""Multi-scale self-guided attention: its parts, and the network with its losses in evaluation and training."""

from typing import Any

import torch
from torch import Tensor

from zoo.medical.ms_dual_guided import guided_losses
from zoo.registry import MODELS, build
from zoo.weights.importers import ms_dual_guided as importer

NETWORKS = (importer.NETWORK,)


def _named(out: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """The authors' names: maps from fine to coarse, codes from coarse to fine."""
    found = {}
    for i in range(4):
        found[f"predict{i + 1}"], found[f"predict{i + 1}_2"] = out["logits"][i], out["logits"][4 + i]
        found[f"sem_1_{4 - i}"], found[f"sem_2_{4 - i}"] = out["codes"][i], out["codes"][4 + i]
    for i in range(8):
        found[f"inp_enc{i}"], found[f"out_enc{i}"] = out["inputs"][i], out["decoded"][i]
    return found


def _losses(out: dict[str, list[Tensor]], target: Tensor) -> dict[str, Tensor]:
    """The authors' order: guidance from coarse to fine."""
    found = guided_losses(out, target)
    return {**found, "semantic": found["semantic"].flip(0)}


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    if entry in importer.PARTS:
        out = model(inputs[""])
        return {"semantic_vector": out[0], "out": out[1]} if isinstance(out, tuple) else {"": out}
    found: dict[str, Any] = {"logits": model(inputs["x"])}
    frozen = model.outputs(inputs["x"])
    found["train_outputs_bn_eval"] = _named(frozen)
    trained = model.train()(inputs["x"])
    found["train_outputs"] = _named(trained)
    found["running_after_train"] = importer.revert_state_dict(entry, model.state_dict())
    if "target" in inputs:
        found["losses_bn_eval"] = _losses(frozen, inputs["target"])
        found["losses_train"] = _losses(trained, inputs["target"])
    return found
