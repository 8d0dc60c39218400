"""DeiT-LT's fixtures: the network with both heads, and the distillation loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.classification.distillation import DistillationLoss
from zoo.registry import MODELS, build
from zoo.weights.importers import deit_lt as importer

LOSS = "losses.py:DistillationLoss"
#: entries that are whole networks
NETWORKS = (importer.NETWORK,)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    if entry == LOSS:
        if kwargs.get("base", "SoftTargetCrossEntropy") not in ("SoftTargetCrossEntropy", "CrossEntropyLoss"):
            raise LookupError(f"deit_lt: no base loss {kwargs['base']!r}")
        loss = DistillationLoss(
            kwargs["distillation_type"],
            kwargs["alpha"],
            kwargs["tau"],
            beta=kwargs.get("beta", 0.9999),
            weighted=kwargs["weighted_distillation"],
        )
        if "weight" in inputs:
            loss.set_class_weights(inputs["weight"])
        else:
            loss.set_class_counts(kwargs["cls_num_list"])
        parts = loss(inputs["logits"], inputs["logits_dist"], inputs["target"], inputs.get("teacher_logits"))
        return dict(zip(("loss", "base", "dist"), (p.reshape(1) for p in parts)))
    if entry != importer.NETWORK:
        raise LookupError(f"deit_lt: no entry {entry!r}")
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    x = inputs["x"] if "x" in inputs else inputs[""]
    tokens, _ = model.block_tokens(x)
    logits, logits_dist, cosine = model.both_heads(tokens[-1])
    outputs = {"logits": logits, "logits_dist": logits_dist, "cos_cls_dist": cosine, "embed": model.embed(x)[0]}
    return outputs | {f"block{i}": t for i, t in enumerate(tokens)}
