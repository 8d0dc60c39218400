"""Importer of Hugging Face transformers' DAB-DETR checkpoints (Apache-2.0), such as IDEA-Research/dab-detr-resnet-50.

An entry is transformers' class, its arguments those of the class's config (as in ``config.json``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers import _hf
from zoo.weights.importers._official import KeyMap, refuse

ENTRY = "transformers.DabDetrForObjectDetection"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {ENTRY: ("Detector",)}

_E, _F = "model.encoder.layers.{s}.", "transformer.encoder.layers.{s}."
_D, _O = "model.decoder.layers.{s}.", "transformer.decoder.layers.{s}."
_ALIAS = "model.decoder.bbox_embed."
_WORDS = {"query_content": "qcontent", "query_pos": "qpos", "key_content": "kcontent", "key_pos": "kpos", "value": "v"}
_NAMES = KeyMap(
    [
        (f"{_E}self_attn.in_proj_{{p}}", f"{_F}self_attn.in_proj_{{p}}"),
        (f"{_E}self_attn.o_proj.{{p}}", f"{_F}self_attn.out_proj.{{p}}"),
        (f"{_E}self_attn_layer_norm.{{p}}", f"{_F}norm1.{{p}}"),
        (f"{_E}mlp.fc{{n}}.{{p}}", f"{_F}linear{{n}}.{{p}}"),
        (f"{_E}final_layer_norm.{{p}}", f"{_F}norm2.{{p}}"),
        (f"{_E}activation_fn.{{p}}", f"{_F}activation.{{p}}"),
        ("model.encoder.query_scale.layers.{s}.{p}", "transformer.encoder.query_scale.layers.{s}.{p}"),
        *((f"{_D}self_attn.self_attn_{a}_proj.{{p}}", f"{_O}sa_{b}_proj.{{p}}") for a, b in _WORDS.items()),
        *((f"{_D}cross_attn.cross_attn_{a}_proj.{{p}}", f"{_O}ca_{b}_proj.{{p}}") for a, b in _WORDS.items()),
        (f"{_D}cross_attn.cross_attn_query_pos_sine_proj.{{p}}", f"{_O}ca_qpos_sine_proj.{{p}}"),
        (f"{_D}self_attn.self_attn.output_proj.{{p}}", f"{_O}self_attn.out_proj.{{p}}"),
        (f"{_D}cross_attn.cross_attn.output_proj.{{p}}", f"{_O}cross_attn.out_proj.{{p}}"),
        (f"{_D}self_attn.self_attn_layer_norm.{{p}}", f"{_O}norm1.{{p}}"),
        (f"{_D}cross_attn.cross_attn_layer_norm.{{p}}", f"{_O}norm2.{{p}}"),
        (f"{_D}mlp.final_layer_norm.{{p}}", f"{_O}norm3.{{p}}"),
        (f"{_D}mlp.fc{{n}}.{{p}}", f"{_O}linear{{n}}.{{p}}"),
        (f"{_D}mlp.activation_fn.{{p}}", f"{_O}activation.{{p}}"),
        ("model.decoder.query_scale.layers.{s}.{p}", "transformer.decoder.query_scale.layers.{s}.{p}"),
        ("model.decoder.ref_point_head.layers.{s}.{p}", "transformer.decoder.ref_point_head.layers.{s}.{p}"),
        ("model.decoder.ref_anchor_head.layers.{s}.{p}", "transformer.decoder.ref_anchor_head.layers.{s}.{p}"),
        ("model.decoder.layernorm.{p}", "transformer.decoder.norm.{p}"),
        ("model.input_projection.{p}", "input_proj.{p}"),
        ("model.query_refpoint_embeddings.{p}", "refpoint_embed.{p}"),
        ("model.patterns.{p}", "transformer.patterns.{p}"),
        ("class_embed.{p}", "class_embed.{p}"),
        ("bbox_predictor.layers.{s}.{p}", "bbox_embed.layers.{s}.{p}"),
    ]
)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for a transformers config.

    Raises:
        LookupError: an unknown entry.
        ValueError: a value that is not supported.
    """
    from zoo.detection.dab_detr import DABDETR
    from zoo.detection.detector import Detector

    if entry != ENTRY:
        raise LookupError(f"entry {entry!r} is not known; accepted is {ENTRY!r}")
    for key, only in (("query_dim", 4), ("normalize_before", False)):
        if kwargs.get(key, only) != only:
            raise refuse(entry, key, kwargs[key], repr(only))
    network = dict(
        type=DABDETR,
        num_classes=_hf.num_labels(kwargs),
        num_queries=kwargs.get("num_queries", 300),
        temperature=(float(kwargs.get("temperature_height", 20)), float(kwargs.get("temperature_width", 20))),
        random_refpoints_xy=kwargs.get("random_refpoints_xy", False),
        transformer=dict(
            d_model=kwargs.get("hidden_size", 256),
            nhead=_hf.alike(entry, kwargs, "encoder_attention_heads", "decoder_attention_heads", default=8),
            num_encoder_layers=kwargs.get("encoder_layers", 6),
            num_decoder_layers=kwargs.get("decoder_layers", 6),
            dim_feedforward=_hf.alike(entry, kwargs, "encoder_ffn_dim", "decoder_ffn_dim", default=2048),
            dropout=kwargs.get("dropout", 0.1),
            activation=kwargs.get("activation_function", "prelu"),
            num_patterns=kwargs.get("num_patterns", 0),
            keep_query_pos=kwargs.get("keep_query_pos", False),
        ),
    )
    return dict(type=Detector, backbone=_hf.resnet_config(entry, kwargs, 1), network=network)


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict to ours; the decoder's second name of the box head is dropped.

    Raises:
        KeyError: a key that the model has not.
        ValueError: the two names of the box head hold different numbers.
    """
    kept = {}
    for key, value in state.items():
        original = key.replace(_ALIAS, "bbox_predictor.")
        if original == key or original not in state:
            kept[original] = value
        elif not torch.equal(value, state[original]):
            raise ValueError(f"{key} and {original} are one tensor in this model but hold two")
    return _hf.convert(entry, kept, _NAMES)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to transformers' (version 5, its own ResNet), second name of the box head included."""
    found = _hf.revert(entry, state, _NAMES)
    # This model kept the older names of its backbone and of its encoder's layers.
    renamed = {}
    for key, value in found.items():
        key = key.replace("model.backbone.", "model.backbone.conv_encoder.")
        if key.startswith("model.encoder.layers."):
            key = key.replace(".mlp.fc", ".fc").replace("self_attn.o_proj", "self_attn.out_proj")
        renamed[key] = value
        if key.startswith("bbox_predictor."):
            renamed[key.replace("bbox_predictor.", _ALIAS)] = value
    return renamed
