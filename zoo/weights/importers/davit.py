"""Importer of the authors' DaViT checkpoints (https://github.com/dingmyu/davit, MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.backbones.davit import ATTENTION_TYPES
from zoo.weights.importers._official import KeyMap, layer_norm_eps, official_arguments, parse_class, refuse

NETWORK = "timm.models.davit.DaViT"
#: the authors' classes for detection and segmentation, which are the same
DENSE_NETWORKS = ("mmdet.models.backbones.davit.DaViT", "mmseg.models.backbones.davit.DaViT")
SPATIAL_BLOCK = "timm.models.davit.SpatialBlock"
CHANNEL_BLOCK = "timm.models.davit.ChannelBlock"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = dict.fromkeys((NETWORK, *DENSE_NETWORKS), ("DaViT",))

_DENSE_DEFAULTS: dict[str, Any] = dict(
    in_chans=3,
    depths=(1, 1, 3, 1),
    patch_size=4,
    embed_dims=(64, 128, 192, 256),
    num_heads=(3, 6, 12, 24),
    window_size=7,
    mlp_ratio=4.0,
    qkv_bias=True,
    drop_path_rate=0.1,
    norm_layer="LayerNorm",
    attention_types=ATTENTION_TYPES,
    ffn=True,
    overlapped_patch=False,
    cpe_act=False,
    weight_init="",
    img_size=224,
    drop_rate=0.0,
    attn_drop_rate=0.0,
)
_NETWORK_DEFAULTS = {**{k: v for k, v in _DENSE_DEFAULTS.items() if k != "cpe_act"}, "num_classes": 1000}
_BLOCK_DEFAULTS: dict[str, Any] = dict(
    mlp_ratio=4.0, drop_path=0.0, act_layer="GELU", norm_layer="LayerNorm", ffn=True, dim=None, num_heads=None
)
_SPATIAL_DEFAULTS = {**_BLOCK_DEFAULTS, "window_size": 7, "qkv_bias": True}
_CHANNEL_DEFAULTS = {**_BLOCK_DEFAULTS, "qkv_bias": False}
_ACTIVATIONS = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU, "Hardswish": nn.Hardswish, "ReLU6": nn.ReLU6}

_BLOCK_KEYS = [
    ("cpe.0.proj.{p}", "cpe1.proj.{p}"),
    ("cpe.1.proj.{p}", "cpe2.proj.{p}"),
    ("norm1.{p}", "norm1.{p}"),
    ("norm2.{p}", "norm2.{p}"),
    ("attn.qkv.{p}", "attn.qkv.{p}"),
    ("attn.proj.{p}", "attn.proj.{p}"),
    ("mlp.fc1.{p}", "mlp.fc1.{p}"),
    ("mlp.fc2.{p}", "mlp.fc2.{p}"),
]
_BLOCK_MAP = KeyMap(_BLOCK_KEYS)
_NETWORK_MAP = KeyMap(
    [
        ("patch_embeds.0.proj.{p}", "stem.conv.{p}"),
        ("patch_embeds.0.norm.{p}", "stem.norm.{p}"),
        ("patch_embeds.{s}.proj.{p}", "stages.{s}.downsample.conv.{p}"),
        ("patch_embeds.{s}.norm.{p}", "stages.{s}.downsample.norm.{p}"),
        ("norms.{p}", "head.norm.{p}"),
        ("head.{p}", "head.fc.{p}"),
        ("norm{s}.{p}", "output_norms.{s}.{p}"),
        *((f"main_blocks.{{s}}.{{j}}.{{k}}.{a}", f"stages.{{s}}.blocks.{{j}}.{{k}}.{b}") for a, b in _BLOCK_KEYS),
    ]
)


def _block_config(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    spatial = entry == SPATIAL_BLOCK
    a = official_arguments(entry, kwargs, _SPATIAL_DEFAULTS if spatial else _CHANNEL_DEFAULTS)
    for name in ("dim", "num_heads"):
        if a[name] is None:
            raise TypeError(f"{entry} needs the argument {name!r}")
    mixer: dict[str, Any] = dict(type="channel", qkv_bias=bool(a["qkv_bias"]))
    if spatial:
        mixer.update(type="window", window_size=a["window_size"], rel_pos_bias=False)
    activation, arguments = parse_class(str(a["act_layer"]))
    if activation not in _ACTIVATIONS or arguments:
        raise refuse(entry, "act_layer", a["act_layer"], ", ".join(_ACTIVATIONS))
    return dict(
        type="zoo.backbones.davit.DaViTBlock",
        dim=a["dim"],
        num_heads=a["num_heads"],
        mixer=mixer,
        mlp_ratio=a["mlp_ratio"],
        drop_path=a["drop_path"],
        ffn=bool(a["ffn"]),
        act_layer=_ACTIVATIONS[activation],
        norm_eps=layer_norm_eps(entry, "norm_layer", a["norm_layer"]),
    )


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    The authors' ``img_size``, ``drop_rate`` and ``attn_drop_rate`` change nothing in their model, so they are taken and
    change nothing here.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have.
        ValueError: a value that is not supported.
    """
    if entry in (SPATIAL_BLOCK, CHANNEL_BLOCK):
        return _block_config(entry, kwargs)
    if entry not in (NETWORK, *DENSE_NETWORKS):
        raise LookupError(f"davit: no entry {entry!r}")
    dense = entry in DENSE_NETWORKS
    a = official_arguments(entry, kwargs, _DENSE_DEFAULTS if dense else _NETWORK_DEFAULTS)
    if a["patch_size"] not in (4, [4, 4], (4, 4)):
        raise refuse(entry, "patch_size", a["patch_size"], "4 (the authors' stem is defined for no other)")
    if not dense and a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above")
    if len(a["attention_types"]) > 2:
        raise refuse(entry, "attention_types", a["attention_types"], "at most two")
    return dict(
        type="zoo.backbones.davit.DaViT",
        num_classes=0 if dense else a["num_classes"],
        norm_outputs=dense,
        head_norm_eps=layer_norm_eps(entry, "norm_layer", a["norm_layer"]),
        cpe_act=bool(a.get("cpe_act", False)),
        weight_init="conv" if a["weight_init"] == "conv" else "",
        **{k: a[k] for k in ("in_chans", "window_size", "mlp_ratio", "drop_path_rate")},
        **{k: bool(a[k]) for k in ("qkv_bias", "ffn", "overlapped_patch")},
        **{k: tuple(a[k]) for k in ("depths", "embed_dims", "num_heads", "attention_types")},
    )


def _map(entry: str) -> KeyMap:
    return _BLOCK_MAP if entry in (SPATIAL_BLOCK, CHANNEL_BLOCK) else _NETWORK_MAP


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; raises KeyError for a key that the authors' class has not."""
    return _map(entry).convert(state_dict)


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    return _map(entry).revert(state_dict)
