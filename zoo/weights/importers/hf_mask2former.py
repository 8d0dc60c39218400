"""Importer of Hugging Face transformers' Mask2Former checkpoints (Apache-2.0), such as
facebook/mask2former-swin-small-coco-instance.

An entry is transformers' class, its arguments those of the class's config (as in ``config.json``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers import _hf, _hf_masks
from zoo.weights.importers._official import KeyMap, refuse

ENTRY = "transformers.Mask2FormerForUniversalSegmentation"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {ENTRY: ("MaskSegmenter",)}

_PIXELS = "model.pixel_level_module.decoder."
_QUERIES = "model.transformer_module."
_NAMES = KeyMap(
    [
        (_PIXELS + "level_embed", "pixel_decoder.level_embed"),
        (_PIXELS + "input_projections.{s}.{n}.{p}", "pixel_decoder.input_proj.{s}.{n}.{p}"),
        (
            _PIXELS + "encoder.layers.{s}.self_attn.{p1}.{p}",
            "pixel_decoder.encoder.layers.{s}.self_attn.{p1}.{p}",
        ),
        (_PIXELS + "encoder.layers.{s}.self_attn_layer_norm.{p}", "pixel_decoder.encoder.layers.{s}.norm1.{p}"),
        (_PIXELS + "encoder.layers.{s}.final_layer_norm.{p}", "pixel_decoder.encoder.layers.{s}.norm2.{p}"),
        (_PIXELS + "encoder.layers.{s}.fc{n}.{p}", "pixel_decoder.encoder.layers.{s}.linear{n}.{p}"),
        (_PIXELS + "adapter_1.{n}.{p}", "pixel_decoder.laterals.0.{n}.{p}"),
        (_PIXELS + "layer_1.{n}.{p}", "pixel_decoder.outputs.0.{n}.{p}"),
        (_PIXELS + "mask_projection.{p}", "pixel_decoder.mask_features.{p}"),
        (_QUERIES + "queries_embedder.{p}", "decoder.query_embed.{p}"),
        (_QUERIES + "queries_features.{p}", "decoder.query_feat.{p}"),
        (_QUERIES + "level_embed.{p}", "decoder.level_embed.{p}"),
        (_QUERIES + "input_projections.{s}.{p}", "decoder.input_proj.{s}.{p}"),
        (_QUERIES + "decoder.layers.{s}.self_attn.{p1}.{p}", "decoder.layers.{s}.self_attn.{p1}.{p}"),
        (_QUERIES + "decoder.layers.{s}.cross_attn.{p1}.{p}", "decoder.layers.{s}.cross_attn.{p1}.{p}"),
        (_QUERIES + "decoder.layers.{s}.cross_attn_layer_norm.{p}", "decoder.layers.{s}.norm1.{p}"),
        (_QUERIES + "decoder.layers.{s}.self_attn_layer_norm.{p}", "decoder.layers.{s}.norm2.{p}"),
        (_QUERIES + "decoder.layers.{s}.final_layer_norm.{p}", "decoder.layers.{s}.norm3.{p}"),
        (_QUERIES + "decoder.layers.{s}.fc{n}.{p}", "decoder.layers.{s}.linear{n}.{p}"),
        (_QUERIES + "decoder.layernorm.{p}", "decoder.norm.{p}"),
        (_QUERIES + "decoder.mask_predictor.mask_embedder.{s}.0.{p}", "decoder.mask_embed.layers.{s}.{p}"),
        ("class_predictor.{p}", "decoder.class_embed.{p}"),
    ]
)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for a transformers config.

    Raises:
        LookupError: an unknown entry.
        ValueError: a value that is not supported.
    """
    from zoo.segmentation.mask2former import Mask2Former
    from zoo.segmentation.mask_segmenter import MaskSegmenter

    if entry != ENTRY:
        raise LookupError(f"entry {entry!r} is not known; accepted is {ENTRY!r}")
    for key, value in (("common_stride", 4), ("feature_strides", [4, 8, 16, 32]), ("dropout", 0.0)):
        given = kwargs.get(key, value)
        if (list(given) if isinstance(given, tuple) else given) != value:
            raise refuse(entry, key, given, repr(value))
    heads = kwargs.get("num_attention_heads", 8)
    network = dict(
        type=Mask2Former,
        num_classes=_hf.num_labels(kwargs),
        num_queries=kwargs.get("num_queries", 100),
        dim=kwargs.get("feature_size", 256),
        mask_dim=kwargs.get("mask_feature_size", 256),
        pixel_decoder=dict(
            num_layers=kwargs.get("encoder_layers", 6),
            num_heads=heads,
            d_ffn=kwargs.get("encoder_feedforward_dim", 1024),
        ),
        decoder=dict(
            dim=kwargs.get("hidden_dim", 256),
            num_layers=kwargs.get("decoder_layers", 10) - 1,  # theirs count the start too
            num_heads=heads,
            d_ffn=kwargs.get("dim_feedforward", 2048),
            activation=kwargs.get("activation_function", "relu"),
            pre_norm=kwargs.get("pre_norm", False),
            project=kwargs.get("enforce_input_projection", False),
        ),
    )
    return dict(type=MaskSegmenter, backbone=_hf_masks.backbone_config(entry, kwargs), network=network)


def pixel_decoder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of transformers' pixel decoder alone under the names of ours; raises KeyError for other keys."""
    whole = _NAMES.convert({_PIXELS + k: v for k, v in state.items()})
    return {k.removeprefix("pixel_decoder."): v for k, v in whole.items()}


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict to ours; raises KeyError for a key that the model has not."""
    return _hf_masks.convert(_hf.split_projections(state), _NAMES)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to transformers' (version 5), without the weights of classes in its criterion."""
    found = {}
    reverted = _hf_masks.revert(state, _NAMES, maskformer=False)
    for key, value in reverted.items():
        match = re.fullmatch(r"(.+\.cross_attn)\.([qkv])_proj\.(\w+)", key)
        if not match:
            found[key] = value
        elif match[2] == "q":
            parts = [reverted[f"{match[1]}.{n}_proj.{match[3]}"] for n in "qkv"]
            found[f"{match[1]}.in_proj_{match[3]}"] = torch.cat(parts)
    return found
