"""Importer of timm's DaViT checkpoints (``timm.models.davit``, Apache-2.0), such as ``davit_tiny.msft_in1k``.

timm's names are those of :class:`zoo.backbones.davit.DaViT`; only what timm builds with ``named_blocks`` differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.registry import MODELS
from zoo.weights.importers._official import KeyMap, official_arguments, refuse

#: timm's models that have a counterpart here; those of Florence-2 (``*_fl``) scale the channel attention otherwise
ENTRIES = ("davit_tiny", "davit_small", "davit_base", "davit_large", "davit_huge", "davit_giant")

#: our classes that an entry's checkpoints are for (the keys of all entries are the same)
CHECKPOINTS = {"davit_tiny": ("DaViT",)}

_DEFAULTS: dict[str, Any] = dict(
    in_chans=3,
    depths=None,
    embed_dims=None,
    num_heads=None,
    window_size=7,
    mlp_ratio=4.0,
    qkv_bias=True,
    norm_layer="layernorm2d",
    norm_layer_cl="layernorm",
    norm_eps=1e-5,
    attn_types=("spatial", "channel"),
    ffn=True,
    cpe_act=False,
    down_kernel_size=2,
    channel_attn_v2=False,
    named_blocks=False,
    drop_rate=0.0,
    drop_path_rate=0.0,
    num_classes=1000,
    global_pool="avg",
    head_norm_first=False,
)
#: arguments whose other values timm has and we have not
_ONLY = {
    "norm_layer": "layernorm2d",
    "norm_layer_cl": "layernorm",
    "norm_eps": 1e-5,
    "channel_attn_v2": False,
    "drop_rate": 0.0,
    "global_pool": "avg",
    "head_norm_first": False,
}

_BLOCK_PARTS = ("cpe1.proj", "norm1", "attn.qkv", "attn.proj", "cpe2.proj", "norm2", "mlp.fc1", "mlp.fc2")
_PLAIN = [
    *((f"{part}.{{p}}", f"{part}.{{p}}") for part in ("stem.conv", "stem.norm", "head.norm", "head.fc")),
    *((f"stages.{{s}}.downsample.{part}.{{p}}",) * 2 for part in ("conv", "norm")),
]


def _map(named: tuple[str, ...] | None) -> KeyMap:
    """The renaming; ``named`` are the attention types in the order of the blocks where timm names blocks by them."""
    if named is None:
        return KeyMap([*_PLAIN, *((f"stages.{{s}}.blocks.{{j}}.{{k}}.{part}.{{p}}",) * 2 for part in _BLOCK_PARTS)])
    pairs = [
        (f"stages.{{s}}.blocks.{{j}}.{kind}_block.{part}.{{p}}", f"stages.{{s}}.blocks.{{j}}.{k}.{part}.{{p}}")
        for k, kind in enumerate(named)
        for part in _BLOCK_PARTS
    ]
    return KeyMap([*_PLAIN, *pairs])


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the name of a timm model and the arguments it is created with.

    Raises:
        LookupError: a model of timm's that has no counterpart here.
        TypeError: an argument that timm's class does not have.
        ValueError: a value that is not supported.
    """
    if entry not in ENTRIES:
        raise LookupError(f"timm_davit: no entry {entry!r}; there are {', '.join(ENTRIES)}")
    a = official_arguments(entry, kwargs, _DEFAULTS)
    for name, only in _ONLY.items():
        if a[name] != only:
            raise refuse(entry, name, a[name], repr(only))
    if a["down_kernel_size"] not in (2, 3):
        raise refuse(entry, "down_kernel_size", a["down_kernel_size"], "2 and 3")
    preset = getattr(MODELS.get(entry), "preset")  # noqa: B009 (set by the decorator)
    sizes = {k: tuple(a[k]) for k in ("depths", "embed_dims", "num_heads") if a[k] is not None}
    return dict(
        type="zoo.backbones.davit.DaViT",
        attention_types=tuple(a["attn_types"]),
        overlapped_patch=a["down_kernel_size"] == 3,
        **{**preset, **sizes},
        **{k: a[k] for k in ("in_chans", "num_classes", "window_size", "mlp_ratio", "qkv_bias", "drop_path_rate")},
        **{k: a[k] for k in ("ffn", "cpe_act")},
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's state dict under our names (with named blocks too, in timm's default order).

    Raises:
        KeyError: a key that timm's class has not.
    """
    named = any("_block." in key for key in state_dict)
    return _map(("spatial", "channel") if named else None).convert(state_dict)


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`, for a timm model without named blocks."""
    return _map(None).revert(state_dict)
