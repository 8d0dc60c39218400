"""Hugging Face transformers' Swin backbones under :class:`zoo.backbones.swin.Swin`'s names.

There are two of them: ``SwinBackbone`` (Mask2Former, UPerNet), in transformers 5 and in files of version 4, and
MaskFormer's own copy of it, ``MaskFormerSwinBackbone``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers._official import KeyMap, refuse

#: values that are the only ones supported
_FIXED = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "use_absolute_embeddings": False,
}
#: transformers' own defaults, for the arguments that are passed on: theirs -> ours, default
_PASSED = {
    "patch_size": ("patch_size", 4),
    "num_channels": ("in_chans", 3),
    "embed_dim": ("embed_dim", 96),
    "depths": ("depths", (2, 2, 6, 2)),
    "num_heads": ("num_heads", (3, 6, 12, 24)),
    "window_size": ("window_size", 7),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "qkv_bias": ("qkv_bias", True),
    "layer_norm_eps": ("norm_eps", 1e-5),
    "drop_path_rate": ("drop_path_rate", 0.1),
}
#: files of version 4 (and MaskFormer's) -> names of version 5
_BLOCK = r"(encoder\.layers\.\d+\.blocks\.\d+)\."
_OLD = [
    (_BLOCK + r"attention\.self\.query\.", r"\1.attention.q_proj."),
    (_BLOCK + r"attention\.self\.key\.", r"\1.attention.k_proj."),
    (_BLOCK + r"attention\.self\.value\.", r"\1.attention.v_proj."),
    (_BLOCK + r"attention\.output\.dense\.", r"\1.attention.o_proj."),
    (_BLOCK + r"attention\.self\.relative_position", r"\1.attention.relative_position_bias.relative_position"),
    (_BLOCK + r"intermediate\.dense\.", r"\1.mlp.fc1."),
    (_BLOCK + r"output\.dense\.", r"\1.mlp.fc2."),
]
_TABLE = "attention.relative_position_bias.relative_position_bias_table"
_NAMES = KeyMap(
    [
        ("embeddings.patch_embeddings.projection.{p}", "embeds.0.conv.{p}"),
        ("embeddings.norm.{p}", "embeds.0.norm.{p}"),
        ("encoder.layers.{s}.blocks.{b}.layernorm_before.{p}", "stages.{s}.{b}.norm1.{p}"),
        ("encoder.layers.{s}.blocks.{b}.layernorm_after.{p}", "stages.{s}.{b}.norm2.{p}"),
        ("encoder.layers.{s}.blocks.{b}.attention.qkv.{p}", "stages.{s}.{b}.attn.qkv.{p}"),
        ("encoder.layers.{s}.blocks.{b}.attention.o_proj.{p}", "stages.{s}.{b}.attn.proj.{p}"),
        ("encoder.layers.{s}.blocks.{b}." + _TABLE, "stages.{s}.{b}.attn.rel_pos_bias.table"),
        ("encoder.layers.{s}.blocks.{b}.mlp.fc{n}.{p}", "stages.{s}.{b}.mlp.fc{n}.{p}"),
        ("merge.{s}.{p1}.{p}", "embeds.{s}.{p1}.{p}"),
        ("norms.{s}.{p}", "norms.{s}.{p}"),
    ]
)


def swin_config(entry: str, given: Mapping[str, Any], drop_path_rate: float | None = None) -> dict[str, Any]:
    """Our spec for a transformers config of Swin (``backbone_config``, as a mapping).

    Args:
        entry: for messages.
        given: the config; ``out_features`` or ``out_indices`` say which maps are given, all four without them.
        drop_path_rate: in the place of the config's own.

    Raises:
        ValueError: a value that is not supported.
    """
    from zoo.backbones.swin import Swin

    for key, value in _FIXED.items():
        if given.get(key, value) != value:
            raise refuse(entry, f"backbone_config.{key}", given[key], repr(value))
    spec: dict[str, Any] = {"type": Swin}
    for key, (own, default) in _PASSED.items():
        value = given.get(key, default)
        spec[own] = tuple(value) if isinstance(value, list | tuple) else value
    if drop_path_rate is not None:
        spec["drop_path_rate"] = drop_path_rate
    return {**spec, "num_classes": 0, "out_indices": stages(entry, given, len(spec["depths"]))}


def stages(entry: str, given: Mapping[str, Any], n: int) -> tuple[int, ...]:
    """The stages (from 0, of n) that ``out_features`` ("stage1" ...) or ``out_indices`` (0 is the stem) name."""
    if given.get("out_features"):
        names = [str(f) for f in given["out_features"]]
        if any(not re.fullmatch(r"stage\d+", f) for f in names):
            raise refuse(entry, "backbone_config.out_features", names, "'stage1', 'stage2', ...")
        return tuple(int(f.removeprefix("stage")) - 1 for f in names)
    if given.get("out_indices"):
        indices = [i % (n + 1) for i in given["out_indices"]]
        if 0 in indices:
            raise refuse(entry, "backbone_config.out_indices", given["out_indices"], f"1 to {n} (0 is the stem)")
        return tuple(i - 1 for i in indices)
    return tuple(range(n))


def split_swin(
    state: Mapping[str, Tensor], prefix: str, own: str = "backbone."
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our names of a Swin's tensors, and the rest.

    Args:
        state: transformers' state dict.
        prefix: of the backbone in it, such as ``"backbone."`` or ``"model.pixel_level_module.encoder."``.
        own: prefix of our names.

    Raises:
        KeyError: a tensor under the prefix has no place in a Swin.
    """
    inside, rest = {}, {}
    for key, value in state.items():
        if not key.startswith(prefix):
            rest[key] = value
            continue
        name = key.removeprefix(prefix)
        name = re.sub(r"^(swin|model)\.", "", name)
        for old, new in _OLD:
            name = re.sub(old, new, name)
        # Indices follow from the window; the last norm is a classifier's, which a backbone does not call.
        if name.endswith("relative_position_index") or name.startswith("layernorm."):
            continue
        inside[_own_stage(name)] = value
    return {own + k: v for k, v in _NAMES.convert(_merge_qkv(inside)).items()}, rest


def _own_stage(name: str) -> str:
    """Downsampling belongs to the stage after it here; norms of maps are counted from 0."""
    merge = re.fullmatch(r"encoder\.layers\.(\d+)\.downsample\.(.+)", name)
    if merge:
        return f"merge.{int(merge[1]) + 1}.{merge[2]}"
    norm = re.fullmatch(r"hidden_states_norms\.(stage)?(\d+)\.(\w+)", name)
    if norm:
        return f"norms.{int(norm[2]) - bool(norm[1])}.{norm[3]}"
    return name


def _merge_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    merged = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.+\.attention)\.([qkv])_proj\.(\w+)", key)
        if not match:
            merged[key] = value
        elif match[2] == "q":
            parts = [value, *(state[f"{match[1]}.{n}_proj.{match[3]}"] for n in "kv")]
            merged[f"{match[1]}.qkv.{match[3]}"] = torch.cat(parts)
    return merged


def joined_swin(
    state: Mapping[str, Tensor], prefix: str, own: str = "backbone.", maskformer: bool = False
) -> dict[str, Tensor]:
    """The inverse of :func:`split_swin`, under the names of transformers 5.

    Args:
        state: tensors with our names; those without the prefix ``own`` are passed over.
        prefix: of the backbone in transformers' names.
        own: prefix of our names.
        maskformer: names of MaskFormer's own Swin.

    The last norm, which transformers' backbones hold but do not call, is not among them.
    """
    inside = _NAMES.revert({k.removeprefix(own): v for k, v in state.items() if k.startswith(own)})
    norms, model = {}, {}
    for key, value in inside.items():
        merge = re.fullmatch(r"merge\.(\d+)\.(.+)", key)
        norm = re.fullmatch(r"norms\.(\d+)\.(\w+)", key)
        qkv = re.fullmatch(r"(.+)\.qkv\.(\w+)", key)
        if norm:
            number = norm[1] if maskformer else f"stage{int(norm[1]) + 1}"
            norms[f"{prefix}hidden_states_norms.{number}.{norm[2]}"] = value
        elif merge:
            model[f"encoder.layers.{int(merge[1]) - 1}.downsample.{merge[2]}"] = value
        elif qkv:
            for letter, part in zip("qkv", value.chunk(3)):
                model[f"{qkv[1]}.{letter}_proj.{qkv[2]}"] = part.contiguous()
        else:
            model[key] = value
    if maskformer:
        return {**norms, **{f"{prefix}model.{_maskformer_name(k)}": v for k, v in model.items()}}
    return {**norms, **{f"{prefix}swin.{k}": v for k, v in model.items()}}


_NEW = [
    (_BLOCK + r"attention\.q_proj\.", r"\1.attention.self.query."),
    (_BLOCK + r"attention\.k_proj\.", r"\1.attention.self.key."),
    (_BLOCK + r"attention\.v_proj\.", r"\1.attention.self.value."),
    (_BLOCK + r"attention\.o_proj\.", r"\1.attention.output.dense."),
    (_BLOCK + r"attention\.relative_position_bias\.", r"\1.attention.self."),
    (_BLOCK + r"mlp\.fc1\.", r"\1.intermediate.dense."),
    (_BLOCK + r"mlp\.fc2\.", r"\1.output.dense."),
]


def _maskformer_name(name: str) -> str:
    for new, old in _NEW:
        name = re.sub(new, old, name)
    return name
