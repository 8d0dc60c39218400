"""NAT's fixtures: whole networks, with maps as [B, H, W, C], and the attention of natten as a function."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from zoo.registry import MODELS, build
from zoo.weights.importers import nat as importer
from zoo_kernels.neighborhood_attention import neighborhood_attention

#: entries that are whole networks
NETWORKS = (importer.NAT, importer.DINAT, importer.DINAT_S, importer.ISOTROPIC)

#: natten's functions in one, two and three dimensions
_NATTEN = re.compile(r"natten\.(functional\.na([123])d_qk/softmax/na\2d_av|na[123]d\(backend=[\w-]+\))")


def network(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Outputs of a whole network under the authors' names."""
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, state))
    found: dict[str, Tensor] = {}
    model.patch_embed.register_forward_hook(lambda _module, _args, out: found.update(embed=out))
    model.head.register_forward_pre_hook(lambda _module, args: found.update(pooled=args[0]))
    maps, trunk = model.forward_trunk(x)
    name = "block" if entry == importer.ISOTROPIC else "stage"
    found["logits"] = model.forward_head(trunk)
    return found | {f"{name}{i}": m.permute(0, 2, 3, 1) for i, m in enumerate(maps)}


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model or operator."""
    if entry in NETWORKS:
        x = inputs["x"] if isinstance(inputs.get("x"), Tensor) else inputs[""]
        return network(entry, kwargs, state, x)
    if not _NATTEN.fullmatch(entry):
        raise LookupError(f"nat: no entry {entry!r}")
    options = dict(kwargs)
    out = neighborhood_attention(
        inputs["q"],
        inputs["k"],
        inputs["v"],
        kernel_size=options.pop("kernel_size"),
        dilation=options.pop("dilation", 1),
        stride=options.pop("stride", 1),
        causal=options.pop("is_causal", False),
        scale=options.pop("scale", None),
        bias=inputs.get("rpb"),
    )
    if options:
        raise TypeError(f"{entry}: unknown arguments {sorted(options)}")
    return {"out": out}
