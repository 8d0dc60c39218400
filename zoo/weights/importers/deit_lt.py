"""Importer of the authors' DeiT-LT checkpoints (https://github.com/val-iisc/DeiT-LT, MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import KeyMap, layer_norm_eps, official_arguments, parse_class, refuse

NETWORK = "deit_models/deit.py:DistilledVisionTransformer"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("DistilledViT",)}

_DEFAULTS: dict[str, Any] = dict(
    crt=None,
    img_size=224,
    patch_size=16,
    in_chans=3,
    num_classes=1000,
    global_pool="token",
    embed_dim=768,
    depth=12,
    num_heads=12,
    mlp_ratio=4.0,
    qkv_bias=True,
    init_values=None,
    class_token=True,
    no_embed_class=False,
    pre_norm=False,
    fc_norm=None,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.0,
    weight_init="",
    embed_layer=None,
    norm_layer=None,
    act_layer=None,
    block_fn=None,
    mask_attn=False,
    early_stopping=False,
)
_MAP = KeyMap(
    [
        ("cls_token", "cls_token"),
        ("dist_token", "dist_token"),
        ("pos_embed", "pos_embed"),
        ("patch_embed.proj.{p}", "patch_embed.{p}"),
        ("norm.{p}", "norm.{p}"),
        ("head.{p}", "head.{p}"),
        ("head_dist.{p}", "head_dist.{p}"),
        *((f"blocks.{{i}}.{m}.{{p}}", f"blocks.{{i}}.{m}.{{p}}") for m in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")),
        ("blocks.{i}.attn.qkv.{p}", "blocks.{i}.attn.qkv.{p}"),
        ("blocks.{i}.attn.proj.{p}", "blocks.{i}.attn.proj.{p}"),
        ("blocks.{i}.ls1.gamma", "blocks.{i}.gamma1"),
        ("blocks.{i}.ls2.gamma", "blocks.{i}.gamma2"),
    ]
)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Without effect in the authors' network, and so here: ``crt``, ``no_embed_class``, ``attn_drop_rate``,
    ``embed_layer``, ``mask_attn``, ``early_stopping`` and ``weight_init``. The sizes are taken at their word, though
    the authors' patch embedding is that of the base model whatever they are.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have.
        ValueError: a value that is not supported.
    """
    if entry != NETWORK:
        raise LookupError(f"deit_lt: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _DEFAULTS)
    for name, accepted in (
        ("global_pool", ("token", "")),
        ("class_token", (True,)),
        ("pre_norm", (False,)),
        ("fc_norm", (None, False)),
        ("drop_rate", (0,)),
        ("block_fn", (None,)),
    ):
        if a[name] not in accepted:
            raise refuse(entry, name, a[name], " and ".join(map(repr, accepted)))
    if a["act_layer"] is not None and parse_class(str(a["act_layer"])) != ("GELU", {}):
        raise refuse(entry, "act_layer", a["act_layer"], "None and 'GELU'")
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above (features have no norm here)")
    for name in ("img_size", "patch_size"):
        if not isinstance(a[name], int):
            raise refuse(entry, name, a[name], "a number of pixels")
    kept = "img_size patch_size in_chans num_classes embed_dim depth num_heads mlp_ratio qkv_bias drop_path_rate"
    return dict(
        type="zoo.backbones.deit_lt.DistilledViT",
        layer_scale=a["init_values"] or None,
        norm_eps=1e-6 if a["norm_layer"] is None else layer_norm_eps(entry, "norm_layer", a["norm_layer"]),
        drop_remainder=True,
        **{k: a[k] for k in kept.split()},
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
    """
    if entry != NETWORK:
        raise LookupError(f"deit_lt: no entry {entry!r}")
    return _MAP.convert(state_dict)


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    if entry != NETWORK:
        raise LookupError(f"deit_lt: no entry {entry!r}")
    return _MAP.revert(state_dict)
