"""CT-Scroll: its blocks, the network with what is inside, and the preparation of a volume."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.medical.ct_scroll import prepare_chest_ct, visible_slabs
from zoo.registry import MODELS, build
from zoo.weights.importers import ct_scroll as importer

NETWORKS = (importer.NETWORK,)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    if entry == "src/data_process.py:process_volume":
        size = {"dd": 240, "dh": 480, "dw": 480} | kwargs
        return {"": prepare_chest_ct(inputs[""], [size[k] for k in ("dd", "dh", "dw")])}
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    if entry in importer.BLOCKS:
        out = {"out": model(inputs[""])}
        if importer.BLOCKS[entry] != "global":
            out["mask"] = ~visible_slabs(inputs[""].shape[1], model.direction, model.window)
        return out
    found: dict[str, Any] = {}
    inside = {"tokens": model.project} | {f"block{i}": block for i, block in enumerate(model.blocks)}
    for name, module in inside.items():
        module.register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, out))
    for name, module in {"gap": model.project, "pooled": model.head}.items():
        module.register_forward_pre_hook(lambda _, args, name=name: found.__setitem__(name, args[0]))
    found["logits"] = logits = model(inputs["volume"])
    found["predictions"] = logits.sigmoid()
    found["loss"] = F.binary_cross_entropy_with_logits(logits, inputs["labels"].float(), reduction="none")
    return found
