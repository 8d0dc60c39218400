"""InLine attention's fixtures: the four networks, stages as [B, tokens, C], and the attention on square windows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from zoo.registry import MIXERS, MODELS, build
from zoo.weights.importers import inline_attention as importer

#: entries that are whole networks
NETWORKS = (importer.DEIT, importer.PVT, importer.SWIN, importer.CSWIN)


def _first_blocks(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What the first block of each stage gives, [B, H*W, C]: that is what is recorded of PVT and CSWin."""
    found: list[Tensor] = []
    hooks = [
        stage[0].register_forward_hook(lambda _module, _args, out: found.append(out.flatten(1, 2)))
        for stage in model.stages
    ]
    model.forward_trunk(x)
    for hook in hooks:
        hook.remove()
    return found


def _tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H*W, C]"""
    return x.flatten(2).transpose(1, 2)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    registry = MIXERS if entry == importer.ATTENTION else MODELS
    model = build(importer.config_from_official(entry, kwargs), registry).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    x = inputs["x"]
    if entry == importer.ATTENTION:
        side = math.isqrt(x.shape[1])
        return {"out": model(x.unflatten(1, (side, side))).flatten(1, 2)}
    logits = {"logits": model.forward_classifier(x)}
    if entry == importer.DEIT:
        return logits | {f"block{i}": t for i, t in enumerate(model.block_tokens(x)[0])}
    if entry == importer.PVT:
        return logits | {f"block{i + 1}": t for i, t in enumerate(_first_blocks(model, x))}
    if entry == importer.CSWIN:
        return logits | {f"stage{i + 1}": t for i, t in enumerate(_first_blocks(model, x))}
    # the authors' layer ends with the patch merging that leads to the next one
    maps, _ = model.forward_trunk(x)
    merged = [merge(m).flatten(1, 2) for m, merge in zip(maps, model.embeds[1:])]
    return logits | {f"layer{i}": t for i, t in enumerate([*merged, _tokens(maps[-1])])}
