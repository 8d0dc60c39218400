"""Importer of the weights of the authors' MSA-Conv layer (github.com/zs670980918/MSA-Conv, no licence file)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import KeyMap, official_arguments, refuse

LAYER = "core/op/Transformer_in_Convolution.py:MSA_Conv_2d"

_DEFAULTS: dict[str, Any] = dict(
    input_channel=..., output_channel=..., kernel_size=..., stride=1, padding=1, dilation=1, bias=False
)
_KEYS = KeyMap([("qkv_conv.{p}", "attn.qkv.{p}"), ("mlp.{p}", "conv.{p}")])
_QKV = "attn.qkv.weight"


def _check(entry: str) -> None:
    if entry.partition(" ")[0] != LAYER:
        raise LookupError(f"tic: no entry {entry!r}")


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: an even kernel, for which the authors' attention and its input differ in size.
    """
    _check(entry)
    a = official_arguments(entry, kwargs, _DEFAULTS)
    if missing := [k for k, v in a.items() if v is ...]:
        raise TypeError(f"{entry} needs the argument {missing[0]!r}")
    if a["kernel_size"] % 2 == 0:
        raise refuse(entry, "kernel_size", a["kernel_size"], "odd numbers")
    return dict(
        type="zoo.mixers.msa_conv.MSAConv2d",
        in_channels=a["input_channel"],
        out_channels=a["output_channel"],
        **{k: a[k] for k in ("kernel_size", "stride", "padding", "dilation", "bias")},
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; the 1x1 convolution becomes a linear layer.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
    """
    _check(entry)
    state = _KEYS.convert(state_dict)
    return {k: v.flatten(1) if k == _QKV else v for k, v in state.items()}


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    _check(entry)
    return _KEYS.revert({k: v[..., None, None] if k == _QKV else v for k, v in state_dict.items()})
