"""Importer of the authors' InLine attention checkpoints (https://github.com/LeapLabTHU/InLine)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers import _hybrid
from zoo.weights.importers._official import KeyMap, official_arguments, refuse

DEIT = "models.inline_deit.VisionTransformer"
PVT = "models.inline_pvt.PyramidVisionTransformer"
SWIN = "models.inline_swin.InLineSwin"
CSWIN = "models.inline_cswin.CSWinTransformer"
ATTENTION = "models.inline_swin.InLineAttention"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {DEIT: ("InLineDeiT",), PVT: ("InLinePVT",), SWIN: ("InLineSwin",), CSWIN: ("InLineCSWin",)}

_DEFAULTS: dict[str, dict[str, Any]] = {
    DEIT: dict(_hybrid.DEIT_DEFAULTS),
    PVT: dict(_hybrid.PVT_DEFAULTS, la_sr_ratios="8421", attn_type="IIII"),
    SWIN: dict(_hybrid.SWIN_DEFAULTS, attn_type="IIII"),
    CSWIN: dict(_hybrid.CSWIN_DEFAULTS, attn_type="IIII"),
    ATTENTION: dict(
        dim=None,
        window_size=None,
        num_heads=None,
        qkv_bias=True,
        qk_scale=None,
        attn_drop=0.0,
        proj_drop=0.0,
        shift_size=0,
        kernel_func="identity",
    ),
}
_FEATURE_MAPS = dict(identity="identity", relu="relu", leakyrelu="leaky_relu", exp="exp")

_RESIDUAL = [("residual.0.{p}", "residual.fc1.{p}"), ("residual.2.{p}", "residual.fc2.{p}")]
_INLINE = [(f"attn.{a}", f"attn.{b}") for a, b in _RESIDUAL]
#: the one branch of an InLine block of the authors' CSWin, here under a name that softmax blocks do not have
_BRANCH, _WHOLE = "attns.0", "whole"
_MAPS = {
    DEIT: _hybrid.deit_map(_INLINE),
    PVT: _hybrid.pvt_map(_INLINE),
    SWIN: _hybrid.swin_map(_INLINE),
    CSWIN: _hybrid.cswin_map(
        [(f"{_WHOLE}.get_v.{{p}}", "attn.lepe.{p}"), *((f"{_WHOLE}.{a}", f"attn.{b}") for a, b in _RESIDUAL)]
    ),
    ATTENTION: KeyMap([("qkv.{p}", "qkv.{p}"), ("proj.{p}", "proj.{p}"), *_RESIDUAL]),
}


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Without effect in the authors' constructors, and so here: ``patch_size`` of CSWin, ``qk_scale`` and ``shift_size``
    of the bare attention.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: a value that is not supported.
    """
    if entry not in _DEFAULTS:
        raise LookupError(f"inline_attention: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _DEFAULTS[entry])
    if entry == ATTENTION:
        return _attention(a)
    if entry == DEIT:
        return dict(_hybrid.deit_config(entry, a), type="zoo.backbones.inline_deit.InLineDeiT")
    if entry == PVT:
        attn_type = a["attn_type"] or "IIII"
        for kind, ratio in zip(attn_type, a["la_sr_ratios"]):
            if kind == "I" and int(ratio) != 1:
                raise refuse(entry, "la_sr_ratios", a["la_sr_ratios"], "1 for stages I (the authors' layer fails, too)")
        config = dict(_hybrid.pvt_config(entry, a), attn_type=attn_type, positions_by_count=True)
        return dict(config, type="zoo.backbones.inline_pvt.InLinePVT")
    if entry == SWIN:
        return dict(_hybrid.swin_config(entry, a), type="zoo.backbones.inline_swin.InLineSwin")
    return dict(_hybrid.cswin_config(entry, a), type="zoo.backbones.inline_cswin.InLineCSWin")


def _attention(a: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("dim", "window_size", "num_heads"):
        if a[name] is None:
            raise TypeError(f"{ATTENTION} needs the argument {name!r}")
    _hybrid.refuse_all(ATTENTION, a, dict(attn_drop=0.0, proj_drop=0.0))
    if a["kernel_func"] not in _FEATURE_MAPS:
        raise refuse(ATTENTION, "kernel_func", a["kernel_func"], ", ".join(map(repr, _FEATURE_MAPS)))
    return dict(
        type="zoo.mixers.inline.InLineAttention",
        feature_map=_FEATURE_MAPS[a["kernel_func"]],
        **{name: a[name] for name in ("dim", "num_heads", "qkv_bias")},
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
        ValueError: a buffer that is not what the authors' class makes.
    """
    own: dict[str, Tensor] = {}
    if entry == SWIN:
        state_dict, own = _hybrid.without_buffers(state_dict, lambda grid, window: (*grid, window))
    if entry == CSWIN:
        mark = f".{_BRANCH}.residual."
        inline = {key[: key.index(mark)] for key in state_dict if mark in key}
        state_dict = {
            key.replace(f".{_BRANCH}.", f".{_WHOLE}.") if ".".join(key.split(".")[:2]) in inline else key: value
            for key, value in state_dict.items()
        }
    return {**_map(entry).convert(state_dict), **own}


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    official: dict[str, Tensor] = {}
    if entry == SWIN:
        state_dict, official = _hybrid.with_buffers(state_dict, lambda _block, kept: int(kept[2]))
    reverted = _map(entry).revert(state_dict)
    if entry == CSWIN:
        reverted = {key.replace(f".{_WHOLE}.", f".{_BRANCH}."): value for key, value in reverted.items()}
    return {**reverted, **official}


def _map(entry: str) -> KeyMap:
    if entry not in _MAPS:
        raise LookupError(f"inline_attention: no entry {entry!r}")
    return _MAPS[entry]
