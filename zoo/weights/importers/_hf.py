"""What the importers of Hugging Face transformers' detectors share: backbones, projections that are one matrix here.

Names are those of transformers 5; those of files that version 4 wrote are understood too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers._official import KeyMap, refuse

_FROZEN = ("weight", "bias", "running_mean", "running_var")
#: files of version 4 -> names of version 5
_OLD = [
    (r"^model\.backbone\.conv_encoder\.", "model.backbone."),
    (r"(self_attn|encoder_attn)\.out_proj\.", r"\1.o_proj."),
    (r"(layers\.\d+)\.fc([12])\.", r"\1.mlp.fc\2."),
    (r"(decoder\.layers\.\d+)\.sa_([qk])(content|pos)_proj\.", r"\1.self_attn.\2_\3_proj."),
    (r"(decoder\.layers\.\d+)\.sa_v_proj\.", r"\1.self_attn.v_proj."),
    (r"(decoder\.layers\.\d+)\.ca_([qk])(content|pos)_proj\.", r"\1.encoder_attn.\2_\3_proj."),
    (r"(decoder\.layers\.\d+)\.ca_v_proj\.", r"\1.encoder_attn.v_proj."),
    (r"(decoder\.layers\.\d+)\.ca_qpos_sine_proj\.", r"\1.encoder_attn.q_pos_sine_proj."),
]
_STAGES = "model.backbone.model.encoder.stages."


def as_new(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of transformers 5."""
    renamed = {}
    for key, value in state.items():
        for old, new in _OLD:
            key = re.sub(old, new, key)
        renamed[key] = value
    return renamed


def split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our names of the ResNet's tensors, and the rest; for transformers' own ResNet and for timm's.

    Raises:
        KeyError: a tensor of the backbone has no place in a ResNet.
    """
    backbone, rest = {}, {}
    for key, value in state.items():
        if not key.startswith("model.backbone."):
            rest[key] = value
        elif not key.endswith("num_batches_tracked"):
            backbone[f"backbone.{_resnet_name(key)}"] = value
    return backbone, rest


def _resnet_name(key: str) -> str:
    name = key.removeprefix("model.backbone.model.").removeprefix("_backbone.")
    if re.match(r"(conv1|bn1|layer[1-4]\.\d+)\.", name):  # timm's are torchvision's
        return name
    match = re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name)
    if match:
        return f"{'conv1' if match[1] == 'convolution' else 'bn1'}.{match[2]}"
    match = re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(.+)\.(convolution|normalization)\.(\w+)", name)
    if not match:
        raise KeyError(f"{key} is of no ResNet")
    at = f"layer{int(match[1]) + 1}.{match[2]}"
    convolution = match[4] == "convolution"
    if match[3] == "shortcut":
        return f"{at}.downsample.{0 if convolution else 1}.{match[5]}"
    number = int(match[3].removeprefix("layer.")) + 1
    return f"{at}.{'conv' if convolution else 'bn'}{number}.{match[5]}"


def joined_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`split`'s first part, under the names of transformers' own ResNet."""
    found = {}
    for key, value in state.items():
        name = key.removeprefix("backbone.")
        stem = re.fullmatch(r"(conv1|bn1)\.(\w+)", name)
        part = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(\w+)", name)
        short = re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.(\d)\.(\w+)", name)
        kinds = {"conv1": "convolution", "conv": "convolution", "bn1": "normalization", "bn": "normalization"}
        if stem:
            new = f"model.backbone.model.embedder.embedder.{kinds[stem[1]]}.{stem[2]}"
        elif part:
            layer = f"layer.{int(part[4]) - 1}.{kinds[part[3]]}.{part[5]}"
            new = f"{_STAGES}{int(part[1]) - 1}.layers.{part[2]}.{layer}"
        elif short:
            kind = "convolution" if short[3] == "0" else "normalization"
            new = f"{_STAGES}{int(short[1]) - 1}.layers.{short[2]}.shortcut.{kind}.{short[4]}"
        else:
            raise KeyError(f"{key} is of no ResNet")
        found[new] = value
    return found


def merge_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``q_proj``, ``k_proj`` and ``v_proj`` of an attention as one ``in_proj_weight`` and ``in_proj_bias``.

    Raises:
        KeyError: one of the three is missing.
    """
    merged = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.+)\.q_proj\.(weight|bias)", key)
        if match:
            parts = [value, state[f"{match[1]}.k_proj.{match[2]}"], state[f"{match[1]}.v_proj.{match[2]}"]]
            merged[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(parts)
        elif (
            not re.fullmatch(r".+\.[kv]_proj\.(weight|bias)", key)
            or f"{key.rsplit('.', 2)[0]}.q_proj.weight" not in state
        ):
            merged[key] = value
    return merged


def split_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`merge_projections`."""
    found = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.+)\.in_proj_(weight|bias)", key)
        if match:
            for name, part in zip("qkv", value.chunk(3)):
                found[f"{match[1]}.{name}_proj.{match[2]}"] = part.contiguous()
        else:
            found[key] = value
    return found


def convert(entry: str, state: Mapping[str, Tensor], names: KeyMap) -> dict[str, Tensor]:
    """transformers' state dict of a whole detector to ours.

    Raises:
        KeyError: a key that the model has not.
    """
    backbone, rest = split(as_new(state))
    return {**backbone, **{f"network.{k}": v for k, v in names.convert(merge_projections(rest)).items()}}


def revert(entry: str, state: Mapping[str, Tensor], names: KeyMap) -> dict[str, Tensor]:
    """Our state dict of a whole detector to transformers'."""
    network = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
    backbone = {k: v for k, v in state.items() if not k.startswith("network.")}
    return {**joined_backbone(backbone), **split_projections(names.revert(network))}


def resnet_config(entry: str, kwargs: Mapping[str, Any], levels: int) -> dict[str, Any]:
    """The backbone of a transformers config: its own ResNet (``backbone_config``) or a timm ResNet by name.

    Raises:
        ValueError: another backbone.
    """
    from zoo.detection.resnet import DEPTHS, ResNetBackbone

    out_indices = (3,) if levels == 1 else (1, 2, 3)
    given = kwargs.get("backbone_config") or {}
    given = given if isinstance(given, Mapping) else given.to_dict()
    dilation = bool(kwargs.get("dilation", False))
    if given.get("model_type", "timm_backbone") == "timm_backbone":
        name = given.get("backbone") or kwargs.get("backbone") or "resnet50"
        if name not in DEPTHS:
            raise refuse(entry, "backbone", name, ", ".join(DEPTHS))
        dilation |= (given.get("output_stride") or 32) == 16
        return dict(type=ResNetBackbone, name=name, out_indices=out_indices, dilation=dilation)
    if given["model_type"] != "resnet":
        raise refuse(entry, "backbone_config.model_type", given["model_type"], "'resnet' and 'timm_backbone'")
    for key, value in (
        ("hidden_act", "relu"),
        ("downsample_in_first_stage", False),
        ("downsample_in_bottleneck", False),
    ):
        if given.get(key, value) != value:
            raise refuse(entry, f"backbone_config.{key}", given[key], repr(value))
    basic = given.get("layer_type", "bottleneck") == "basic"
    widths = tuple(given.get("hidden_sizes", (256, 512, 1024, 2048)))
    return dict(
        type=ResNetBackbone,
        name="resnet18" if basic else "resnet50",
        planes=tuple(w if basic else w // 4 for w in widths),
        layers=tuple(given.get("depths", (3, 4, 6, 3))),
        stem=given.get("embedding_size", 64),
        out_indices=out_indices,
    )


def num_labels(kwargs: Mapping[str, Any]) -> int:
    """Classes of a transformers config: ``num_labels`` or the length of ``id2label``; 2 is transformers' default."""
    return int(kwargs["num_labels"]) if kwargs.get("num_labels") is not None else len(kwargs.get("id2label") or (0, 1))


def alike(entry: str, kwargs: Mapping[str, Any], *names: str, default: int) -> int:
    """The value that several arguments must have in common.

    Raises:
        ValueError: they differ.
    """
    values = {n: kwargs.get(n, default) for n in names}
    if len(set(values.values())) > 1:
        raise refuse(entry, names[1], values[names[1]], f"the same as {names[0]}={values[names[0]]}")
    return values[names[0]]
