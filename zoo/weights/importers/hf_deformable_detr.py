"""Importer of Hugging Face transformers' Deformable DETR checkpoints (Apache-2.0), such as SenseTime/deformable-detr.

An entry is transformers' class, its arguments those of the class's config (as in ``config.json``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers import _hf
from zoo.weights.importers._official import KeyMap, refuse

ENTRY = "transformers.DeformableDetrForObjectDetection"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {ENTRY: ("Detector",)}

_E, _F = "model.encoder.layers.{s}.", "transformer.encoder.layers.{s}."
_D, _O = "model.decoder.layers.{s}.", "transformer.decoder.layers.{s}."
_PARTS = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_SAME = ("reference_points", "enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm")
_NAMES = KeyMap(
    [
        *((f"{_E}self_attn.{x}.{{p}}", f"{_F}self_attn.{x}.{{p}}") for x in _PARTS),
        (f"{_E}self_attn_layer_norm.{{p}}", f"{_F}norm1.{{p}}"),
        (f"{_E}mlp.fc{{n}}.{{p}}", f"{_F}linear{{n}}.{{p}}"),
        (f"{_E}final_layer_norm.{{p}}", f"{_F}norm2.{{p}}"),
        *((f"{_D}encoder_attn.{x}.{{p}}", f"{_O}cross_attn.{x}.{{p}}") for x in _PARTS),
        (f"{_D}self_attn.in_proj_{{p}}", f"{_O}self_attn.in_proj_{{p}}"),
        (f"{_D}self_attn.o_proj.{{p}}", f"{_O}self_attn.out_proj.{{p}}"),
        (f"{_D}encoder_attn_layer_norm.{{p}}", f"{_O}norm1.{{p}}"),
        (f"{_D}self_attn_layer_norm.{{p}}", f"{_O}norm2.{{p}}"),
        (f"{_D}final_layer_norm.{{p}}", f"{_O}norm3.{{p}}"),
        (f"{_D}mlp.fc{{n}}.{{p}}", f"{_O}linear{{n}}.{{p}}"),
        *((f"model.{x}.{{p}}", f"transformer.{x}.{{p}}") for x in _SAME),
        ("model.level_embed", "transformer.level_embed"),
        ("model.input_proj.{s}.{n}.{p}", "input_proj.{s}.{n}.{p}"),
        ("model.query_position_embeddings.{p}", "query_embed.{p}"),
        ("class_embed.{s}.{p}", "class_embed.{s}.{p}"),
        ("bbox_embed.{s}.layers.{n}.{p}", "bbox_embed.{s}.layers.{n}.{p}"),
    ]
)
_ALIAS = re.compile(r"model\.decoder\.((?:bbox|class)_embed\..*)")


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for a transformers config.

    Raises:
        LookupError: an unknown entry.
        ValueError: a value that is not supported.
    """
    from zoo.detection.deformable_detr import DeformableDETR
    from zoo.detection.detector import Detector

    if entry != ENTRY:
        raise LookupError(f"entry {entry!r} is not known; accepted is {ENTRY!r}")
    levels, two_stage = kwargs.get("num_feature_levels", 4), kwargs.get("two_stage", False)
    queries = kwargs.get("two_stage_num_proposals", 300) if two_stage else kwargs.get("num_queries", 300)
    if kwargs.get("attention_dropout", 0.0):
        raise refuse(entry, "attention_dropout", kwargs["attention_dropout"], "0.0")
    network = dict(
        type=DeformableDETR,
        num_classes=_hf.num_labels(kwargs),
        num_queries=queries,
        num_feature_levels=levels,
        with_box_refine=kwargs.get("with_box_refine", False),
        two_stage=two_stage,
        position=kwargs.get("position_embedding_type", "sine"),
        transformer=dict(
            d_model=kwargs.get("d_model", 256),
            nhead=_hf.alike(entry, kwargs, "encoder_attention_heads", "decoder_attention_heads", default=8),
            num_encoder_layers=kwargs.get("encoder_layers", 6),
            num_decoder_layers=kwargs.get("decoder_layers", 6),
            dim_feedforward=_hf.alike(entry, kwargs, "encoder_ffn_dim", "decoder_ffn_dim", default=1024),
            dropout=kwargs.get("dropout", 0.1),
            activation=kwargs.get("activation_function", "relu"),
            enc_n_points=kwargs.get("encoder_n_points", 4),
            dec_n_points=kwargs.get("decoder_n_points", 4),
        ),
    )
    return dict(type=Detector, backbone=_hf.resnet_config(entry, kwargs, levels), network=network)


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict to ours; the decoder's second names of the heads are dropped.

    Raises:
        KeyError: a key that the model has not.
        ValueError: the two names of a head hold different numbers.
    """
    kept = {}
    for key, value in state.items():
        match = _ALIAS.fullmatch(key)
        if match is None or match[1] not in state:
            kept[key if match is None else match[1]] = value
        elif not torch.equal(value, state[match[1]]):
            raise ValueError(f"{key} and {match[1]} are one tensor in this model but hold two")
    return _hf.convert(entry, kept, _NAMES)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to transformers' (version 5, its own ResNet), second names of the heads included."""
    found = _hf.revert(entry, state, _NAMES)
    first = [k for k in found if k.startswith("bbox_embed.0.")]
    second = {k: found.get(k.replace("bbox_embed.0.", "bbox_embed.1.")) for k in first}
    refined = any(v is not None and v.data_ptr() != found[k].data_ptr() for k, v in second.items())
    starts = (("bbox_embed.",) if refined else ()) + (("class_embed.",) if "model.enc_output.weight" in found else ())
    return found | {f"model.decoder.{k}": v for k, v in found.items() if starts and k.startswith(starts)}
