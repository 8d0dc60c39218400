"""Importer of Hugging Face transformers' SegFormer checkpoints (the code is Apache-2.0), such as
nvidia/segformer-b0-finetuned-ade-512-512 (whose weights are for non-commercial use).

An entry is transformers' class, its arguments those of the class's config (as in ``config.json``). Names of version 5
and of files that version 4 wrote are understood; back to version 5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers import _hf
from zoo.weights.importers._official import KeyMap, refuse

SEGMENTER = "transformers.SegformerForSemanticSegmentation"
CLASSIFIER = "transformers.SegformerForImageClassification"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {SEGMENTER: ("Segmenter",), CLASSIFIER: ("MixTransformer",)}

#: values that are the only ones supported
_FIXED = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "reshape_last_stage": True,
}
#: theirs -> ours, default
_PASSED = {
    "num_channels": ("in_chans", 3),
    "depths": ("depths", (2, 2, 2, 2)),
    "sr_ratios": ("sr_ratios", (8, 4, 2, 1)),
    "hidden_sizes": ("embed_dims", (32, 64, 160, 256)),
    "patch_sizes": ("patch_sizes", (7, 3, 3, 3)),
    "strides": ("patch_strides", (4, 2, 2, 2)),
    "num_attention_heads": ("num_heads", (1, 2, 5, 8)),
    "mlp_ratios": ("mlp_ratios", (4, 4, 4, 4)),
    "drop_path_rate": ("drop_path_rate", 0.1),
}
#: files of version 4 -> names of version 5
_OLD = [
    (r"encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
    (r"encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
    (r"encoder\.layer_norm\.(\d+)\.", r"stages.\1.layer_norm."),
    (r"attention\.self\.query\.", "attention.q_proj."),
    (r"attention\.self\.key\.", "attention.k_proj."),
    (r"attention\.self\.value\.", "attention.v_proj."),
    (r"attention\.self\.sr\.", "attention.sequence_reduction.sequence_reduction."),
    (r"attention\.self\.layer_norm\.", "attention.sequence_reduction.layer_norm."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"mlp\.dense([12])\.", r"mlp.fc\1."),
    (r"layer_norm_1\.", "layernorm_before."),
    (r"layer_norm_2\.", "layernorm_after."),
    (r"decode_head\.linear_c\.", "decode_head.linear_projections."),
]
_BLOCK, _OWN = "stages.{s}.blocks.{b}.", "stages.{s}.{b}."
_BACKBONE = [
    ("stages.{s}.patch_embeddings.proj.{p}", "embeds.{s}.conv.{p}"),
    ("stages.{s}.patch_embeddings.layer_norm.{p}", "embeds.{s}.norm.{p}"),
    ("stages.{s}.layer_norm.{p}", "norms.{s}.{p}"),
    (_BLOCK + "layernorm_before.{p}", _OWN + "norm1.{p}"),
    (_BLOCK + "layernorm_after.{p}", _OWN + "norm2.{p}"),
    (_BLOCK + "attention.q_proj.{p}", _OWN + "attn.q.{p}"),
    (_BLOCK + "attention.kv_proj.{p}", _OWN + "attn.kv.{p}"),
    (_BLOCK + "attention.o_proj.{p}", _OWN + "attn.proj.{p}"),
    (_BLOCK + "attention.sequence_reduction.sequence_reduction.{p}", _OWN + "attn.reduction.conv.{p}"),
    (_BLOCK + "attention.sequence_reduction.layer_norm.{p}", _OWN + "attn.reduction.norm.{p}"),
    (_BLOCK + "mlp.fc{n}.{p}", _OWN + "mlp.fc{n}.{p}"),
    (_BLOCK + "mlp.dwconv.dwconv.{p}", _OWN + "mlp.conv.{p}"),
]
_HEAD = [
    ("decode_head.linear_projections.{n}.proj.{p}", "head.projections.{n}.{p}"),
    ("decode_head.linear_fuse.{p}", "head.fuse.{p}"),
    ("decode_head.batch_norm.{p}", "head.norm.{p}"),
    ("decode_head.classifier.{p}", "head.classifier.{p}"),
]
_NAMES = {
    SEGMENTER: KeyMap([*((f"segformer.{a}", f"backbone.{b}") for a, b in _BACKBONE), *_HEAD]),
    CLASSIFIER: KeyMap([*((f"segformer.{a}", b) for a, b in _BACKBONE), ("classifier.{p}", "head.fc.{p}")]),
}


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for a transformers config.

    Raises:
        LookupError: an unknown entry.
        ValueError: a value that is not supported.
    """
    from zoo.backbones.mit import MixTransformer
    from zoo.segmentation.segformer import SegFormerHead
    from zoo.segmentation.segmenter import Segmenter

    if entry not in CHECKPOINTS:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(map(repr, CHECKPOINTS))}")
    for key, value in _FIXED.items():
        if kwargs.get(key, value) != value:
            raise refuse(entry, key, kwargs[key], repr(value))
    backbone: dict[str, Any] = {"type": MixTransformer}
    for key, (own, default) in _PASSED.items():
        value = kwargs.get(key, default)
        backbone[own] = tuple(value) if isinstance(value, list | tuple) else value
    stages = kwargs.get("num_encoder_blocks", 4)
    if stages != len(backbone["depths"]):
        raise refuse(entry, "num_encoder_blocks", stages, f"{len(backbone['depths'])}, as many as depths")
    classes = _hf.num_labels(kwargs)
    if entry == CLASSIFIER:
        return {**backbone, "num_classes": classes}
    head = dict(
        type=SegFormerHead,
        dim=kwargs.get("decoder_hidden_size", 256),
        dropout=kwargs.get("classifier_dropout_prob", 0.1),
    )
    return dict(type=Segmenter, backbone={**backbone, "num_classes": 0}, head=head, num_classes=classes)


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict to ours; raises KeyError for a key that the model has not."""
    named = {}
    for key, value in state.items():
        for old, new in _OLD:
            key = re.sub(old, new, key)
        named[key] = value
    merged = {}
    for key, value in named.items():
        match = re.fullmatch(r"(.+\.attention)\.([kv])_proj\.(\w+)", key)
        if not match:
            merged[key] = value
            continue
        other = f"{match[1]}.{'v' if match[2] == 'k' else 'k'}_proj.{match[3]}"
        if other not in named:
            raise KeyError(f"{key} is there and {other} is not")
        if match[2] == "k":
            merged[f"{match[1]}.kv_proj.{match[3]}"] = torch.cat([value, named[other]])
    return _NAMES[entry].convert(merged)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to transformers' (version 5)."""
    found = {}
    for key, value in _NAMES[entry].revert(state).items():
        match = re.fullmatch(r"(.+)\.kv_proj\.(\w+)", key)
        if match:
            for letter, part in zip("kv", value.chunk(2)):
                found[f"{match[1]}.{letter}_proj.{match[2]}"] = part.contiguous()
        else:
            found[key] = value
    return found
