"""FFTNet's fixtures: whole networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import fftnet as importer


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Tokens (class token first) after embedding and blocks, and logits, by our model with the authors' weights."""
    model = build(importer.config_from_official(entry, kwargs), MODELS)
    model.load_state_dict(importer.convert_state_dict(entry, state))
    model.eval()
    (x,) = inputs.values()
    with torch.no_grad():
        tokens, _ = model.embed(x)
        outputs = {"embed": tokens}
        for i, block in enumerate(model.blocks):
            tokens = block(tokens)
            outputs[f"block{i}"] = tokens
        return {**outputs, "logits": model(x)}
