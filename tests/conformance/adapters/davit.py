"""DaViT: the authors' entries as ours; stages as [B, tokens, C]."""

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import davit

#: entries that are whole networks
NETWORKS = (davit.NETWORK, *davit.DENSE_NETWORKS)


def _tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H*W, C]"""
    return x.flatten(2).transpose(1, 2)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    model = build(davit.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(davit.convert_state_dict(entry, state))
    x = inputs["x"]
    if entry in davit.DENSE_NETWORKS:
        return {f"stage{i}": m for i, m in enumerate(model(x))}
    if entry == davit.NETWORK:
        outputs = {f"stage{i}": _tokens(m) for i, m in enumerate(model.forward_features(x))}
        return outputs | {"logits": model(x)}
    height, width = inputs["size"].tolist()
    B, _, C = x.shape
    out = model(x.reshape(B, height, width, C)).flatten(1, 2)
    if entry == davit.SPATIAL_BLOCK:
        wh, ww = model.attn.window
        x = x[:, : wh * ww].reshape(B, wh, ww, C)
    else:
        x = x.reshape(B, height, width, C)
    return {"out": out, "attn": model.attn(x).flatten(1, 2)}
