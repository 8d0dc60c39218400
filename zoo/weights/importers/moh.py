"""Importer of the authors' MoH-ViT checkpoints (https://github.com/SkyworkAI/MoH, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import KeyMap, layer_norm_eps, official_arguments, refuse

NETWORK = "MoH-ViT/transnext.py:TransNeXt"
ATTENTION = "MoH-ViT/attention.py:Attention"
AGGREGATED = "MoH-ViT/attention_native.py:AggregatedAttention"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("MoHTransNeXt",)}

_NETWORK_DEFAULTS: dict[str, Any] = dict(
    img_size=224,
    pretrain_size=None,
    window_size=(3, 3, 3, None),
    patch_size=16,
    in_chans=3,
    num_classes=1000,
    embed_dims=(64, 128, 256, 512),
    num_heads=(1, 2, 4, 8),
    mlp_ratios=(4, 4, 4, 4),
    qkv_bias=False,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.0,
    norm_layer="LayerNorm",
    norm_eps=None,  # a number stands for norm_layer="LayerNorm(eps=...)"
    depths=(3, 4, 6, 3),
    sr_ratios=(8, 4, 2, 1),
    num_stages=4,
    fixed_pool_size=None,
    shared_head=(1, 2, 4, 8),
    routed_head=(0, 0, 0, 0),
)
_ATTENTION_DEFAULTS: dict[str, Any] = dict(
    dim=None,
    input_resolution=None,
    num_heads=8,
    qkv_bias=True,
    attn_drop=0.0,
    proj_drop=0.0,
    shared_head=0,
    routed_head=0,
    H=None,  # H, W: of the map that forward gets
    W=None,
    pretrain_size=None,
)
_AGGREGATED_DEFAULTS: dict[str, Any] = dict(_ATTENTION_DEFAULTS, window_size=3, sr_ratio=1, fixed_pool_size=None)

_MIXER_KEYS = [
    ("qkv.{p}", "qkv.{p}"),
    ("q.{p}", "q.{p}"),
    ("kv.{p}", "kv.{p}"),
    ("query_embedding", "query_embedding"),
    ("temperature", "temperature"),
    ("proj.{p}", "proj.{p}"),
    ("sr.{p}", "sr.{p}"),
    ("norm.{p}", "norm.{p}"),
    ("cpb_fc1.{p}", "position.fc1.{p}"),
    ("cpb_fc2.{p}", "position.fc2.{p}"),
    ("relative_pos_bias_local", "local_bias"),
    ("learnable_tokens", "learnable_tokens"),
    ("learnable_bias", "learnable_bias"),
    ("wg.{p}", "gates.routed_gate.{p}"),
    ("wg_0.{p}", "gates.balance_gate.{p}"),
    ("wg_1.{p}", "gates.shared_gate.{p}"),
]
_BLOCK_KEYS = [
    ("norm1.{p}", "norm1.{p}"),
    ("norm2.{p}", "norm2.{p}"),
    *((f"attn.{a}", f"attn.{b}") for a, b in _MIXER_KEYS),
    ("mlp.fc1.{p}", "mlp.fc1.{p}"),
    ("mlp.fc2.{p}", "mlp.fc2.{p}"),
    ("mlp.dwconv.dwconv.{p}", "mlp.dwconv.{p}"),
]
_STAGES = 4
_NETWORK_MAP = KeyMap(
    [
        pair
        for i in range(_STAGES)
        for pair in [
            (f"patch_embed{i + 1}.proj.{{p}}", f"embeds.{i}.proj.{{p}}"),
            (f"patch_embed{i + 1}.norm.{{p}}", f"embeds.{i}.norm.{{p}}"),
            (f"norm{i + 1}.{{p}}", f"norms.{i}.{{p}}"),
            *((f"block{i + 1}.{{j}}.{a}", f"stages.{i}.{{j}}.{b}") for a, b in _BLOCK_KEYS),
        ]
    ]
    + [("head.{p}", "head.{p}")]
)
_MAPS = {NETWORK: _NETWORK_MAP, ATTENTION: KeyMap(_MIXER_KEYS), AGGREGATED: KeyMap(_MIXER_KEYS)}


def _network_config(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    a = official_arguments(entry, kwargs, _NETWORK_DEFAULTS)
    if a["attn_drop_rate"]:
        raise refuse(entry, "attn_drop_rate", a["attn_drop_rate"], "0")
    if a["num_stages"] != _STAGES:
        raise refuse(entry, "num_stages", a["num_stages"], "4 (the authors' head reads the fourth width)")
    if not isinstance(a["img_size"], int):
        raise refuse(entry, "img_size", a["img_size"], "a number of pixels")
    eps = a.pop("norm_eps")
    if eps is None:
        eps = layer_norm_eps(entry, "norm_layer", a["norm_layer"])
    elif "norm_layer" in kwargs:
        raise refuse(entry, "norm_eps", eps, "None beside norm_layer")
    for i in range(_STAGES):
        stage = a["img_size"] // 2 ** (i + 2)
        _check_heads(entry, a["num_heads"][i], a["shared_head"][i], a["routed_head"][i])
        if a["sr_ratios"][i] > 1:
            _check_pooling(entry, (stage, stage), a["sr_ratios"][i], a["fixed_pool_size"])
    for name in ("attn_drop_rate", "num_stages", "norm_layer"):
        del a[name]
    return dict(type="zoo.backbones.moh.MoHTransNeXt", norm_eps=eps, **a)


def _check_heads(entry: str, heads: int, shared: int, routed: int) -> None:
    if not routed and (shared != heads or shared < 2):
        raise refuse(entry, "shared_head", shared, f"all num_heads={heads} (2 or more) where routed_head is 0")


def _check_pooling(entry: str, size: tuple[int, int], ratio: int, fixed: int | None) -> None:
    if fixed is not None and fixed >= min(size):
        raise refuse(entry, "fixed_pool_size", fixed, f"less than the shorter side of the map, {size}")
    if fixed is None and min(size) < ratio:
        raise refuse(entry, "sr_ratio", ratio, f"at most the shorter side of the map, {size}")


def _mixer_config(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    a = official_arguments(entry, kwargs, _ATTENTION_DEFAULTS if entry == ATTENTION else _AGGREGATED_DEFAULTS)
    for name in ("dim", "input_resolution"):
        if a[name] is None:
            raise TypeError(f"{entry} needs the argument {name!r}")
    for name in ("attn_drop", "proj_drop"):
        if a[name]:
            raise refuse(entry, name, a[name], "0")
    size = tuple(a["input_resolution"])
    if (a["H"] or size[0], a["W"] or size[1]) != size:
        raise refuse(
            entry, "H, W", (a["H"], a["W"]), f"input_resolution={size}, which the authors' buffers are made for"
        )
    pretrain = a["pretrain_size"] or size
    _check_heads(entry, a["num_heads"], a["shared_head"], a["routed_head"])
    own = dict(
        dim=a["dim"],
        num_heads=a["num_heads"],
        qkv_bias=a["qkv_bias"],
        shared_heads=a["shared_head"],
        routed_heads=a["routed_head"],
        input_size=(pretrain, pretrain) if isinstance(pretrain, int) else tuple(pretrain),
    )
    if entry == ATTENTION:
        return dict(type="zoo.mixers.moh.MoHAttention", **own)
    _check_pooling(entry, size, a["sr_ratio"], a["fixed_pool_size"])
    return dict(
        type="zoo.mixers.aggregated.AggregatedAttention",
        window_size=a["window_size"],
        sr_ratio=a["sr_ratio"],
        pool_size=a["fixed_pool_size"],
        **own,
    )


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    For the attentions, ``H``, ``W`` and ``pretrain_size`` (which the authors' forward gets as tables) are read too.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: a value that is not supported.
    """
    if entry == NETWORK:
        return _network_config(entry, kwargs)
    if entry not in _MAPS:
        raise LookupError(f"moh: no entry {entry!r}")
    return _mixer_config(entry, kwargs)


def _map(entry: str) -> KeyMap:
    if entry not in _MAPS:
        raise LookupError(f"moh: no entry {entry!r}")
    return _MAPS[entry]


def _is_pointwise(key: str) -> bool:
    """Whether one of our weights, that of a linear layer, is at the authors' that of a 1x1 convolution."""
    return key.endswith("sr.weight")


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; 1x1 convolutions become linear layers.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
        ValueError: a weight that is no 1x1 convolution where one is expected.
    """
    state = _map(entry).convert(state_dict)
    for key, value in state.items():
        if _is_pointwise(key):
            if value.ndim != 4 or value.shape[2:] != (1, 1):
                raise ValueError(f"{entry}: {key} has shape {tuple(value.shape)}; a 1x1 convolution is expected")
            state[key] = value.flatten(1)
    return state


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    return _map(entry).revert({k: v[..., None, None] if _is_pointwise(k) else v for k, v in state_dict.items()})
