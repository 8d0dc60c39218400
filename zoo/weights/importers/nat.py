"""Importer of the authors' NAT, DiNAT, DiNAT-s and isotropic checkpoints.

Repository github.com/SHI-Labs/Neighborhood-Attention-Transformer (MIT). Entries are the authors' classes as
``file:Class``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers._official import KeyMap, layer_norm_eps, official_arguments, parse_class, refuse

NAT = "classification/nat.py:NAT"
DINAT = "classification/dinat.py:DiNAT"
DINAT_S = "classification/dinats.py:DiNAT_s"
ISOTROPIC = "classification/isotropic.py:NATIsotropic"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NAT: ("NAT", "DiNAT"), DINAT_S: ("DiNATs",), ISOTROPIC: ("NATIsotropic",)}

_SHARED: dict[str, Any] = dict(
    in_chans=3,
    num_classes=1000,
    qkv_bias=True,
    qk_scale=None,
    kernel_size=7,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    norm_layer="LayerNorm",
)
_PYRAMID: dict[str, Any] = dict(
    _SHARED,
    drop_path_rate=0.2,
    layer_scale=None,
    dilations=None,
    embed_dim=...,
    mlp_ratio=...,
    depths=...,
    num_heads=...,
)
_DEFAULTS: dict[str, dict[str, Any]] = {
    NAT: _PYRAMID,
    DINAT: _PYRAMID,
    DINAT_S: dict(
        _SHARED,
        patch_size=4,
        embed_dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        dilations=None,
        mlp_ratio=4.0,
        drop_path_rate=0.2,
        patch_norm=True,
    ),
    ISOTROPIC: dict(
        _SHARED,
        img_size=224,
        patch_size=16,
        embed_dim=384,
        depth=12,
        num_heads=12,
        mlp_ratio=4.0,
        dilation=2,
        layer="NATransformerLayer",
        drop_path_rate=0.1,
        patch_norm=True,
    ),
}

_PARTS = ("norm1.{p}", "norm2.{p}", "attn.qkv.{p}", "attn.proj.{p}", "attn.rpb", "mlp.fc1.{p}", "mlp.fc2.{p}")
_GAMMAS = ("gamma1", "gamma2")
_ENDS = [(key, key) for key in ("patch_embed.norm.{p}", "norm.{p}", "head.{p}")]
_STEP = [(f"{{s}}.downsample.{part}.{{p}}",) * 2 for part in ("reduction", "norm")]


def _pyramid_map(levels: str, patches: str, parts: tuple[str, ...]) -> KeyMap:
    inner = [*_STEP, *((f"{{s}}.blocks.{{j}}.{part}",) * 2 for part in parts)]
    return KeyMap([(patches, patches), *_ENDS, *((f"{levels}.{a}", f"levels.{b}") for a, b in inner)])


_NAT_MAP = _pyramid_map("levels", "patch_embed.proj.{k}.{p}", (*_PARTS, *_GAMMAS))
_MAPS = {
    NAT: _NAT_MAP,
    DINAT: _NAT_MAP,
    DINAT_S: _pyramid_map("layers", "patch_embed.proj.{p}", _PARTS),
    ISOTROPIC: KeyMap(
        [("patch_embed.proj.{p}",) * 2, *_ENDS, *((f"layers.{{j}}.{part}",) * 2 for part in _PARTS)]  # type: ignore[list-item]
    ),
}

#: a buffer of the authors' full attention, which follows from the shape of its table of biases
_INDEX = "attn.relative_position_index"


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: a value that is not supported: dropout (``drop_rate``, ``attn_drop_rate``) other than 0.
    """
    if entry not in _DEFAULTS:
        raise LookupError(f"nat: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _DEFAULTS[entry])
    if missing := [k for k, v in a.items() if v is ...]:
        raise TypeError(f"{entry} needs the argument {missing[0]!r}")
    for name in ("drop_rate", "attn_drop_rate"):
        if a.pop(name):
            raise refuse(entry, name, kwargs[name], "0 (drop_path_rate is the regularisation of these models)")
    a["norm_eps"] = layer_norm_eps(entry, "norm_layer", a.pop("norm_layer"))
    if entry == DINAT_S:
        return dict(type="zoo.backbones.dinat_s.DiNATs", **a)
    if entry != ISOTROPIC:
        if not isinstance(a["layer_scale"], (int, float)):
            a["layer_scale"] = None  # the authors' class takes numbers for a scale and anything else for none
        return dict(type="zoo.backbones.dinat.DiNAT" if entry == DINAT else "zoo.backbones.nat.NAT", **a)
    layer, arguments = parse_class(str(a.pop("layer")))
    if layer not in ("NATransformerLayer", "VisionTransformerLayer") or arguments:
        raise refuse(entry, "layer", kwargs["layer"], "'NATransformerLayer' and 'VisionTransformerLayer'")
    if layer == "VisionTransformerLayer":
        a.update(kernel_size=None, dilation=1)  # it has neither
    elif a["kernel_size"] is None:
        raise refuse(entry, "kernel_size", None, "a number, with the layer NATransformerLayer")
    a["dilation"] = a["dilation"] or 1
    return dict(type="zoo.backbones.nat_isotropic.NATIsotropic", **a)


def _map(entry: str) -> KeyMap:
    if entry not in _MAPS:
        raise LookupError(f"nat: no entry {entry!r}")
    return _MAPS[entry]


def _position_index(side: int) -> Tensor:
    """Entry of the flattened table for each (query, key) of a ``side`` x ``side`` map: offset key - query."""
    rows, columns = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    dy = rows[None, :] - rows[:, None] + side - 1
    dx = columns[None, :] - columns[:, None] + side - 1
    return dy * (2 * side - 1) + dx


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; the index buffers of the full-attention models are checked and dropped.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
        ValueError: an index buffer that is not the one of the authors' class.
    """
    state = dict(state_dict)
    if entry == ISOTROPIC:
        for key in [k for k in state if k.endswith(_INDEX)]:
            index = state.pop(key)
            table = state.get(key.removesuffix(_INDEX) + "attn.rpb")
            side = 0 if table is None else (table.shape[-1] + 1) // 2
            if index.shape != (side**2, side**2) or not torch.equal(index, _position_index(side).to(index)):
                raise ValueError(f"{entry}: {key} is not the index of a table of {side} x {side} positions")
    return _map(entry).convert(state)


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor], full_attention: bool = False) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`; ``full_attention`` adds the buffers of VisionTransformerLayer."""
    state = _map(entry).revert(state_dict)
    if entry == ISOTROPIC and full_attention:
        for key in [k for k in state if k.endswith("attn.rpb")]:
            state[key.removesuffix("attn.rpb") + _INDEX] = _position_index((state[key].shape[-1] + 1) // 2)
    return state
