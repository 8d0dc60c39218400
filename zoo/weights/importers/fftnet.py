"""Importer of the authors' FFTNet checkpoints (https://github.com/jacobfa/fft, ``imgnet/``; no licence)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers._official import KeyMap, official_arguments, refuse

NETWORK = "imgnet/fftnet_vit.py:FFTNetViT"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("FFTNet",)}

_DEFAULTS: dict[str, Any] = dict(
    img_size=224,
    patch_size=16,
    in_chans=3,
    num_classes=1000,
    embed_dim=768,
    depth=12,
    mlp_ratio=4.0,
    dropout=0.1,
    num_heads=12,
    adaptive_spectral=True,
)
_MAP = KeyMap(
    [
        ("patch_embed.proj.{p}", "patch_embed.{p}"),
        ("blocks.{s}.attention.pre_norm.{p}", "blocks.{s}.norm1.{p}"),
        ("blocks.{s}.attention.base_filter", "blocks.{s}.mixer.base_filter"),
        ("blocks.{s}.attention.base_bias", "blocks.{s}.mixer.base_bias"),
        ("blocks.{s}.attention.adaptive_mlp.0.{p}", "blocks.{s}.mixer.adapt1.{p}"),
        ("blocks.{s}.attention.adaptive_mlp.2.{p}", "blocks.{s}.mixer.adapt2.{p}"),
        ("blocks.{s}.norm.{p}", "blocks.{s}.norm2.{p}"),
        ("blocks.{s}.mlp.{s2}.{p}", "blocks.{s}.mlp.{s2}.{p}"),
        ("cls_token", "cls_token"),
        ("norm.{p}", "norm.{p}"),
        ("head.{p}", "head.{p}"),
    ]
)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have.
        ValueError: a value that is not supported.
    """
    if entry != NETWORK:
        raise LookupError(f"fftnet: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _DEFAULTS)
    for name in ("img_size", "patch_size"):
        if not isinstance(a[name], int):
            raise refuse(entry, name, a[name], "an integer")
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above")
    return dict(
        type="zoo.backbones.fftnet.FFTNet",
        input_size=a["img_size"],
        dim=a["embed_dim"],
        adaptive=bool(a["adaptive_spectral"]),
        drop_remainder=True,
        **{k: a[k] for k in ("patch_size", "in_chans", "num_classes", "depth", "mlp_ratio", "dropout", "num_heads")},
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; the class token's row of the position table is kept apart.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not, or no position table.
        ValueError: a position table of no square grid.
    """
    if entry != NETWORK:
        raise LookupError(f"fftnet: no entry {entry!r}")
    rest = dict(state_dict)
    if "pos_embed" not in rest:
        raise KeyError("missing in the state dict: pos_embed")
    positions = rest.pop("pos_embed")  # [1, 1 + N, C]
    side = math.isqrt(positions.shape[1] - 1)
    if side * side != positions.shape[1] - 1:
        raise ValueError(f"{entry}: pos_embed has {positions.shape[1]} rows; one for the token and a square grid")
    table = positions[:, 1:].unflatten(1, (side, side))
    return {**_MAP.convert(rest), "cls_pos": positions[:, :1], "pos_embed.table": table}


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    if entry != NETWORK:
        raise LookupError(f"fftnet: no entry {entry!r}")
    rest = dict(state_dict)
    positions = torch.cat([rest.pop("cls_pos"), rest.pop("pos_embed.table").flatten(1, 2)], dim=1)
    return {**_MAP.revert(rest), "pos_embed": positions}
