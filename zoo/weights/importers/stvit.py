"""Importer of the authors' STViT checkpoints (github.com/hhb072/STViT, MIT by the header of its files)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers._official import KeyMap, official_arguments, refuse

NETWORK = "models.stvit.STViT"
ATTENTION = "models.stvit.StokenAttention"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("STViT",)}

_NETWORK_DEFAULTS: dict[str, Any] = dict(
    in_chans=3,
    num_classes=1000,
    embed_dim=(96, 192, 384, 768),
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    n_iter=(1, 1, 1, 1),
    stoken_size=(8, 4, 2, 1),
    mlp_ratio=4.0,
    qkv_bias=True,
    qk_scale=None,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.1,
    projection=None,
    freeze_bn=False,
    use_checkpoint=False,
    checkpoint_num=(0, 0, 0, 0),
    layerscale=(False, False, False, False),
    init_values=1e-6,
)
_ATTENTION_DEFAULTS: dict[str, Any] = dict(
    dim=...,
    stoken_size=...,
    n_iter=1,
    refine=True,
    refine_attention=True,
    num_heads=8,
    qkv_bias=False,
    qk_scale=None,
    attn_drop=0.0,
    proj_drop=0.0,
)

_REFINE = [
    ("stoken_refine.qkv.{p}", "refine.qkv.{p}"),
    ("stoken_refine.proj.{p}", "refine.proj.{p}"),
    ("stoken_refine.{k}.{p}", "refine.{k}.{p}"),
]
_BLOCK = [
    ("pos_embed.conv.{p}", "pos_embed.proj.{p}"),
    ("norm1.norm.{p}", "norm1.{p}"),
    ("norm2.{p}", "norm2.{p}"),
    ("attn.fold.weights", "fold"),
    ("attn.unfold.weights", "unfold"),
    ("mlp2.fc1.{p}", "mlp.fc1.{p}"),
    ("mlp2.conv.conv.{p}", "mlp.conv.proj.{p}"),
    ("mlp2.fc2.{p}", "mlp.fc2.{p}"),
    ("gamma_1", "gamma1"),
    ("gamma_2", "gamma2"),
    *((f"attn.{a}", f"attn.{b}") for a, b in _REFINE[:2]),
]
_MAPS = {
    NETWORK: KeyMap(
        [
            ("patch_embed.proj.{k}.{p}", "patch_embed.proj.{k}.{p}"),
            ("layers.{s}.downsample.proj.{k}.{p}", "levels.{s}.downsample.proj.{k}.{p}"),
            ("proj.{p}", "proj.{p}"),
            ("norm.{p}", "norm.{p}"),
            ("head.{p}", "head.{p}"),
            *((f"layers.{{s}}.blocks.{{j}}.{a}", f"levels.{{s}}.blocks.{{j}}.{b}") for a, b in _BLOCK),
        ]
    ),
    ATTENTION: KeyMap(_REFINE),
}
#: our weights of linear layers, which are 1x1 convolutions there
_POINTWISE = re.compile(r"(.*\.)?(refine\.(qkv|proj|0|2)|mlp\.fc[12])\.weight|proj\.weight")
_KERNELS = ("fold.weights", "unfold.weights")


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Without effect in the authors' constructor, and so here: ``freeze_bn``.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: a value that is not supported.
    """
    if entry == ATTENTION:
        a = official_arguments(entry, kwargs, _ATTENTION_DEFAULTS)
        for name in ("dim", "stoken_size"):
            if a[name] is ...:
                raise TypeError(f"{entry} needs the argument {name!r}")
        _no_dropout(entry, a, ("attn_drop", "proj_drop"))
        kind = "none" if not a["refine"] else "attention" if a["refine_attention"] else "conv"
        return dict(
            type="zoo.mixers.super_token.SuperTokenAttention",
            dim=a["dim"],
            num_heads=a["num_heads"] if kind == "attention" else 1,  # without attention the authors read no heads
            token_size=tuple(a["stoken_size"]),
            iterations=a["n_iter"],
            qkv_bias=a["qkv_bias"],
            qk_scale=a["qk_scale"],
            refine=kind,
            affinity_grad=False,
        )
    if entry != NETWORK:
        raise LookupError(f"stvit: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _NETWORK_DEFAULTS)
    _no_dropout(entry, a, ("drop_rate", "attn_drop_rate"))
    if a["use_checkpoint"]:
        raise refuse(entry, "use_checkpoint", True, "False; set_grad_checkpointing() on the model changes no result")
    if not a["projection"]:
        raise refuse(entry, "projection", a["projection"], "a number of channels (the authors' class needs one, too)")
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above (features have no projection here)")
    stages = len(a["depths"])
    unused = ("drop_rate", "attn_drop_rate", "freeze_bn", "use_checkpoint", "checkpoint_num")
    spec = {k: v for k, v in a.items() if k not in unused}
    for name in ("n_iter", "stoken_size", "layerscale", "num_heads", "embed_dim"):
        spec[name] = tuple(spec[name])[:stages]  # the authors' class reads as many as there are stages
    return dict(type="zoo.backbones.stvit.STViT", **spec)


def _no_dropout(entry: str, a: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if a[name]:
            raise refuse(entry, name, a[name], "0 (drop_path_rate is the regularisation of these models)")


def _map(entry: str) -> KeyMap:
    if entry not in _MAPS:
        raise LookupError(f"stvit: no entry {entry!r}")
    return _MAPS[entry]


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names: 1x1 convolutions become linear layers, layer scales vectors.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not, or a bare attention without its fold and unfold kernels.
        ValueError: kernels of fold or unfold that are not the identity, or a convolution that is not 1x1.
    """
    keys = _map(entry)
    state = dict(state_dict)
    for key in [k for k in state if k.endswith(_KERNELS)]:
        kernels = state[key]
        if kernels.shape != (9, 1, 3, 3) or not torch.equal(kernels, _identity().to(kernels)):
            raise ValueError(f"{entry}: {key} is not the identity that fold and unfold are made with")
    if entry == ATTENTION:
        for key in _KERNELS:
            if key not in state:
                raise KeyError(f"the state dict has no {key!r}")
            del state[key]
    state = keys.convert(state)
    for key, value in state.items():
        if _POINTWISE.fullmatch(key):
            if value.ndim != 4 or value.shape[2:] != (1, 1):
                raise ValueError(f"{entry}: {key} has shape {tuple(value.shape)}; a 1x1 convolution is expected")
            state[key] = value.flatten(1)
        elif key.endswith((".gamma1", ".gamma2")):
            state[key] = value.flatten()
    return state


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    state = {}
    for key, value in state_dict.items():
        if _POINTWISE.fullmatch(key):
            value = value[..., None, None]
        elif key.endswith((".gamma1", ".gamma2")):
            value = value.view(1, -1, 1, 1)
        state[key] = value
    state = _map(entry).revert(state)
    return {**state, **{k: _identity() for k in _KERNELS}} if entry == ATTENTION else state


def _identity() -> Tensor:
    return torch.eye(9).view(9, 1, 3, 3)
