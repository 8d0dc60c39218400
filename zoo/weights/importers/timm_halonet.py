"""Importer of timm's HaloNet checkpoints (``timm.models.byoanet``, Apache-2.0), such as ``halonet26t.a1h_in1k``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.registry import MODELS
from zoo.weights.importers._official import KeyMap, official_arguments, refuse

#: timm's models whose only attention between positions is HaloNet's
ENTRIES = ("halonet_h1", "halonet26t", "sehalonet33ts", "halonet50ts", "eca_halonext26ts", "haloregnetz_b")

#: our classes that an entry's checkpoints are for (keys differ by the stem: several convolutions with pooling, or one)
CHECKPOINTS = {"halonet26t": ("HaloNet",), "haloregnetz_b": ("HaloNet",)}

_DEFAULTS: dict[str, Any] = dict(
    num_classes=1000,
    in_chans=3,
    drop_path_rate=0.0,
    zero_init_last=True,
    global_pool="avg",
    output_stride=32,
    img_size=None,
    drop_rate=0.0,
    drop_block_rate=0.0,
    drop_block_size=3,
)
#: arguments whose other values timm has and we have not
_ONLY = {"global_pool": ("avg", None), "output_stride": (32,), "drop_rate": (0.0,), "drop_block_rate": (0.0,)}

_LAYERS = ("conv1_1x1", "conv2_kxk", "conv3_1x1", "shortcut")
_BLOCK = [
    *((f"{layer}.{part}.{{p}}",) * 2 for layer in _LAYERS for part in ("conv", "bn")),
    *((f"attn.{part}.{{p}}",) * 2 for part in ("fc1", "fc2", "conv")),
    ("self_attn.q.{p}", "self_attn.q.{p}"),
    ("self_attn.kv.{p}", "self_attn.kv.{p}"),
    ("self_attn.pos_embed.height_rel", "self_attn.rel_height"),
    ("self_attn.pos_embed.width_rel", "self_attn.rel_width"),
    ("post_attn.{p}", "post_attn.{p}"),
]
_COMMON = [
    *((f"final_conv.{part}.{{p}}",) * 2 for part in ("conv", "bn")),
    ("head.fc.{p}", "head.{p}"),
    *((f"stages.{{s}}.{{j}}.{a}", f"stages.{{s}}.{{j}}.{b}") for a, b in _BLOCK),
]
#: timm numbers the convolutions of a stem of several from 1, and leaves the only one without a number
_SEVERAL = [
    (f"stem.conv{i + 1}.{part}.{{p}}", f"stem.convs.{i}.{part}.{{p}}") for i in range(3) for part in ("conv", "bn")
]
_SINGLE = [(f"stem.{part}.{{p}}", f"stem.convs.0.{part}.{{p}}") for part in ("conv", "bn")]


def _map(entry: str) -> KeyMap:
    if entry not in ENTRIES:
        raise LookupError(f"timm_halonet: no entry {entry!r}; there are {', '.join(ENTRIES)}")
    return KeyMap([*(_SINGLE if entry == "haloregnetz_b" else _SEVERAL), *_COMMON])


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the name of a timm model and the arguments it is created with.

    Without effect in these models of timm's, and so here: ``img_size``, ``drop_block_size``.

    Raises:
        LookupError: a model of timm's that has no counterpart here.
        TypeError: an argument that timm's class does not have, or one that changes the architecture.
        ValueError: a value that is not supported.
    """
    _map(entry)
    a = official_arguments(entry, kwargs, _DEFAULTS)
    for name, accepted in _ONLY.items():
        if a[name] not in accepted:
            raise refuse(entry, name, a[name], ", ".join(map(repr, accepted)))
    preset = getattr(MODELS.get(entry), "preset")  # noqa: B009 (set by the decorator)
    passed = ("num_classes", "in_chans", "drop_path_rate", "zero_init_last")
    return dict(type="zoo.backbones.halonet.HaloNet", **preset, **{k: a[k] for k in passed})


def _is_pointwise(key: str) -> bool:
    """Whether one of our weights, that of a linear layer, is at timm's that of a 1x1 convolution."""
    return key.endswith((".self_attn.q.weight", ".self_attn.kv.weight"))


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's state dict under our names; 1x1 convolutions of the attention become linear layers.

    Raises:
        LookupError: a model of timm's that has no counterpart here.
        KeyError: a key that timm's class has not.
    """
    return {k: v.flatten(1) if _is_pointwise(k) else v for k, v in _map(entry).convert(state_dict).items()}


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    return _map(entry).revert({k: v[..., None, None] if _is_pointwise(k) else v for k, v in state_dict.items()})
