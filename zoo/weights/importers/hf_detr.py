"""Importer of Hugging Face transformers' DETR checkpoints (Apache-2.0), such as facebook/detr-resnet-50.

An entry is transformers' class, its arguments those of the class's config (as in ``config.json``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers import _hf
from zoo.weights.importers._official import KeyMap

ENTRY = "transformers.DetrForObjectDetection"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {ENTRY: ("Detector",)}

_ENCODER = [
    ("model.encoder.layers.{s}.self_attn.in_proj_{p}", "transformer.encoder.layers.{s}.self_attn.in_proj_{p}"),
    ("model.encoder.layers.{s}.self_attn.o_proj.{p}", "transformer.encoder.layers.{s}.self_attn.out_proj.{p}"),
    ("model.encoder.layers.{s}.self_attn_layer_norm.{p}", "transformer.encoder.layers.{s}.norm1.{p}"),
    ("model.encoder.layers.{s}.mlp.fc{n}.{p}", "transformer.encoder.layers.{s}.linear{n}.{p}"),
    ("model.encoder.layers.{s}.final_layer_norm.{p}", "transformer.encoder.layers.{s}.norm2.{p}"),
]
_HEADS = [
    ("model.decoder.layernorm.{p}", "transformer.decoder.norm.{p}"),
    ("model.input_projection.{p}", "input_proj.{p}"),
    ("model.query_position_embeddings.{p}", "query_embed.{p}"),
    ("class_labels_classifier.{p}", "class_embed.{p}"),
    ("bbox_predictor.layers.{s}.{p}", "bbox_embed.layers.{s}.{p}"),
]
_NAMES = KeyMap(
    [
        *_ENCODER,
        ("model.decoder.layers.{s}.self_attn.in_proj_{p}", "transformer.decoder.layers.{s}.self_attn.in_proj_{p}"),
        ("model.decoder.layers.{s}.self_attn.o_proj.{p}", "transformer.decoder.layers.{s}.self_attn.out_proj.{p}"),
        (
            "model.decoder.layers.{s}.encoder_attn.in_proj_{p}",
            "transformer.decoder.layers.{s}.multihead_attn.in_proj_{p}",
        ),
        (
            "model.decoder.layers.{s}.encoder_attn.o_proj.{p}",
            "transformer.decoder.layers.{s}.multihead_attn.out_proj.{p}",
        ),
        ("model.decoder.layers.{s}.self_attn_layer_norm.{p}", "transformer.decoder.layers.{s}.norm1.{p}"),
        ("model.decoder.layers.{s}.encoder_attn_layer_norm.{p}", "transformer.decoder.layers.{s}.norm2.{p}"),
        ("model.decoder.layers.{s}.final_layer_norm.{p}", "transformer.decoder.layers.{s}.norm3.{p}"),
        ("model.decoder.layers.{s}.mlp.fc{n}.{p}", "transformer.decoder.layers.{s}.linear{n}.{p}"),
        *_HEADS,
    ]
)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for a transformers config.

    Raises:
        LookupError: an unknown entry.
        ValueError: a value that is not supported.
    """
    from zoo.detection.detector import Detector
    from zoo.detection.detr import DETR

    if entry != ENTRY:
        raise LookupError(f"entry {entry!r} is not known; accepted is {ENTRY!r}")
    network = dict(
        type=DETR,
        num_classes=_hf.num_labels(kwargs),
        num_queries=kwargs.get("num_queries", 100),
        position=kwargs.get("position_embedding_type", "sine"),
        transformer=dense_transformer(entry, kwargs),
    )
    return dict(type=Detector, backbone=_hf.resnet_config(entry, kwargs, 1), network=network)


def dense_transformer(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the dense transformers for those of a config."""
    return dict(
        d_model=kwargs.get("d_model", 256),
        nhead=_hf.alike(entry, kwargs, "encoder_attention_heads", "decoder_attention_heads", default=8),
        num_encoder_layers=kwargs.get("encoder_layers", 6),
        num_decoder_layers=kwargs.get("decoder_layers", 6),
        dim_feedforward=_hf.alike(entry, kwargs, "encoder_ffn_dim", "decoder_ffn_dim", default=2048),
        dropout=kwargs.get("dropout", 0.1),
        activation=kwargs.get("activation_function", "relu"),
    )


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict to ours; raises KeyError for a key that the model has not."""
    return _hf.convert(entry, state, _NAMES)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to transformers' (version 5, its own ResNet)."""
    return _hf.revert(entry, state, _NAMES)
