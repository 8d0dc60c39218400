"""Sparsifiner's fixtures: whole networks, with what each block's predictor says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.layers.records import recording
from zoo.registry import MODELS, build
from zoo.weights.importers import sparsifiner as importer

#: entries that are whole networks
NETWORKS = (importer.NETWORK,)
#: our records and the authors' names of them: one a block, or the mean over the blocks
BLOCKS = {"approximation": "approx_attn", "coefficients": "basis_coef", "mask": "attn_mask"}
MEANS = {
    "basis_sparsity": "basis_sparsity",
    "coefficient_sparsity": "basis_coef_sparsity",
    "mask_sparsity": "attn_mask_sparsity",
}


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    x = inputs["x"] if "x" in inputs else inputs[""]
    with recording(model, *BLOCKS, *MEANS) as records:
        tokens, masks, _ = model.block_tokens(x)
    outputs = {"logits": model.forward_head(tokens[-1]), "features": model.norm(tokens[-1])[:, 1:]}
    outputs |= {f"token_mask{i}": m.float() for i, m in enumerate(masks) if m is not None}
    for ours, official in BLOCKS.items():
        outputs |= {f"{official}{i}": value.float() for i, value in enumerate(records[ours])}
    return outputs | {name: torch.stack(records[ours]).mean().reshape(1) for ours, name in MEANS.items()}
