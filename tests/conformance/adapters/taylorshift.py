"""TaylorShift's fixtures: the attention in both forms, the vision transformer and the classifier of sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.registry import MIXERS, MODELS, build
from zoo.weights.importers import taylorshift as importer

#: entries that are whole networks
NETWORKS = (importer.VIT, importer.SEQUENCE)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    registry = MIXERS if entry == importer.ATTENTION else MODELS
    config, x = importer.config_from_official(entry, kwargs), inputs[""]
    if entry == importer.ATTENTION:
        outputs = {}
        for name, form in (("direct", "direct"), ("efficient", "linear"), ("", "auto")):
            mixer = build(dict(config, form=form), registry).eval()
            mixer.load_state_dict(importer.convert_state_dict(entry, state))
            outputs[name] = mixer.forward_tokens(x)
        return outputs
    model = build(config, registry).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    embedded = model.embed(x) if entry == importer.SEQUENCE else model.embed(x)[0]
    blocks = model.trunk(embedded)
    logits = model(x) if entry == importer.SEQUENCE else model.forward_classifier(x)
    found = {"embed": embedded, "tokens": model.head.norm(blocks[-1]), "logits": logits}
    return found | {f"block{i}": t for i, t in enumerate(blocks)}
