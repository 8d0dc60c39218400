"""Hugging Face transformers' ConvNeXt backbones under :class:`zoo.backbones.convnext.ConvNeXt`'s names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._hf_swin import stages
from zoo.weights.importers._official import KeyMap, refuse

#: theirs -> ours, default
_PASSED = {
    "patch_size": ("patch_size", 4),
    "num_channels": ("in_chans", 3),
    "hidden_sizes": ("embed_dims", (96, 192, 384, 768)),
    "depths": ("depths", (3, 3, 9, 3)),
    "layer_scale_init_value": ("layer_scale", 1e-6),
    "drop_path_rate": ("drop_path_rate", 0.0),
}
_BLOCK, _OWN = "encoder.stages.{s}.layers.{b}.", "stages.{s}.{b}."
_NAMES = KeyMap(
    [
        ("embeddings.patch_embeddings.{p}", "embeds.0.conv.{p}"),
        ("embeddings.layernorm.{p}", "embeds.0.norm.{p}"),
        ("encoder.stages.{s}.downsampling_layer.0.{p}", "embeds.{s}.norm.{p}"),
        ("encoder.stages.{s}.downsampling_layer.1.{p}", "embeds.{s}.conv.{p}"),
        (_BLOCK + "dwconv.{p}", _OWN + "conv.{p}"),
        (_BLOCK + "layernorm.{p}", _OWN + "norm.{p}"),
        (_BLOCK + "pwconv{n}.{p}", _OWN + "fc{n}.{p}"),
        (_BLOCK + "layer_scale_parameter", _OWN + "scale"),
        ("norms.{s}.{p}", "norms.{s}.{p}"),
    ]
)


def convnext_config(entry: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for a transformers config of ConvNeXt (``backbone_config``, as a mapping).

    Args:
        entry: for messages.
        given: the config; ``out_features`` or ``out_indices`` say which maps are given, all without them.

    Raises:
        ValueError: a value that is not supported.
    """
    from zoo.backbones.convnext import ConvNeXt

    if given.get("hidden_act", "gelu") != "gelu":
        raise refuse(entry, "backbone_config.hidden_act", given["hidden_act"], "'gelu'")
    spec: dict[str, Any] = {"type": ConvNeXt}
    for key, (own, default) in _PASSED.items():
        value = given.get(key, default)
        spec[own] = tuple(value) if isinstance(value, list | tuple) else value
    return {**spec, "num_classes": 0, "drop_remainder": True, "out_indices": stages(entry, given, len(spec["depths"]))}


def split_convnext(
    state: Mapping[str, Tensor], prefix: str, own: str = "backbone."
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our names of a ConvNeXt's tensors, and the rest.

    Raises:
        KeyError: a tensor under the prefix has no place in a ConvNeXt.
    """
    inside, rest = {}, {}
    for key, value in state.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            norm = re.fullmatch(r"hidden_states_norms\.stage(\d+)\.(\w+)", name)
            inside[f"norms.{int(norm[1]) - 1}.{norm[2]}" if norm else name] = value
        else:
            rest[key] = value
    return {own + k: v for k, v in _NAMES.convert(inside).items()}, rest


def joined_convnext(state: Mapping[str, Tensor], prefix: str, own: str = "backbone.") -> dict[str, Tensor]:
    """The inverse of :func:`split_convnext`'s first part; tensors without the prefix ``own`` are passed over.

    In the stages after the first, our ``embeds`` are their ``downsampling_layer``.
    """
    found = {}
    for key, value in _NAMES.revert({k.removeprefix(own): v for k, v in state.items() if k.startswith(own)}).items():
        norm = re.fullmatch(r"norms\.(\d+)\.(\w+)", key)
        found[prefix + (f"hidden_states_norms.stage{int(norm[1]) + 1}.{norm[2]}" if norm else key)] = value
    return found
