"""Importer of the authors' LKCA checkpoints.

Repository github.com/CatworldLee/LKCA-MiniViTsTrainer-Pytorch-CIFAR-TinyImageNet (no licence file).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.layers.padding import to_pair
from zoo.weights.importers._official import KeyMap, official_arguments, refuse

CNN = "models/largevit_cnn.py:Large_ViT_cnn"
VIT = "models/largevit_vit.py:Large_ViT_vit"

#: our classes that an entry's checkpoints are for (the keys of both views are the same)
CHECKPOINTS = {CNN: ("LKCAViT",)}

_DEFAULTS: dict[str, Any] = dict(
    img_size=...,
    patch_size=...,
    num_classes=...,
    dim=...,
    depth=...,
    heads=...,
    mlp_dim_ratio=...,
    channels=3,
    dim_head=16,
    dropout=0.0,
    emb_dropout=0.0,
    stochastic_depth=0.0,
)
_BLOCK = [
    ("0.norm.{p}", "norm1.{p}"),
    ("0.fn.to_v.{p}", "attn.v.{p}"),
    ("0.fn.dynamicqk", "attn.kernel"),
    ("0.fn.to_out.0.{p}", "attn.proj.{p}"),
    ("1.norm.{p}", "norm2.{p}"),
    ("1.fn.net.0.{p}", "mlp.fc1.{p}"),
    ("1.fn.net.3.{p}", "mlp.fc2.{p}"),
]
_KEYS = KeyMap(
    [
        ("to_patch_embedding.1.{p}", "patch_embed.proj.{p}"),
        ("pos_embedding", "patch_embed.positions.table"),
        ("cls_token", "cls_token"),
        ("mlp_head.0.{p}", "norm.{p}"),
        ("mlp_head.1.{p}", "head.{p}"),
        *((f"transformer.layers.{{j}}.{a}", f"layers.{{j}}.{b}") for a, b in _BLOCK),
    ]
)


def _check(entry: str) -> None:
    if entry.partition(" ")[0] not in (CNN, VIT):
        raise LookupError(f"lkca: no entry {entry!r}")


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: a value that is not supported: dropout other than 0, or a grid of patches that is not square.
    """
    _check(entry)
    a = official_arguments(entry, kwargs, _DEFAULTS)
    if missing := [k for k, v in a.items() if v is ...]:
        raise TypeError(f"{entry} needs the argument {missing[0]!r}")
    for name in ("dropout", "emb_dropout"):
        if a[name]:
            raise refuse(entry, name, a[name], "0 (stochastic_depth is supported)")
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above")
    image, patch = to_pair(a["img_size"], "img_size"), to_pair(a["patch_size"], "patch_size")
    if image[0] % patch[0] or image[1] % patch[1] or image[0] // patch[0] != image[1] // patch[1]:
        raise refuse(entry, "img_size", a["img_size"], f"a square number of patches of {patch[0]} x {patch[1]} pixels")
    return dict(
        type="zoo.backbones.lkca.LKCAViT",
        img_size=image,
        patch_size=patch,
        num_classes=a["num_classes"],
        dim=a["dim"],
        depth=a["depth"],
        value_dim=a["heads"] * a["dim_head"],
        proj=not (a["heads"] == 1 and a["dim_head"] == a["dim"]),
        mlp_ratio=a["mlp_dim_ratio"],
        in_chans=a["channels"],
        drop_path_rate=a["stochastic_depth"],
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
    """
    _check(entry)
    state = _KEYS.convert(state_dict)
    return {k: v[0, 0] if k.endswith("attn.kernel") else v for k, v in state.items()}


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    _check(entry)
    state = {k: v[None, None] if k.endswith("attn.kernel") else v for k, v in state_dict.items()}
    return _KEYS.revert(state)
