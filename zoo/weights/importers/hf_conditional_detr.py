"""Importer of Hugging Face transformers' Conditional DETR checkpoints (Apache-2.0), such as
microsoft/conditional-detr-resnet-50.

An entry is transformers' class, its arguments those of the class's config (as in ``config.json``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers import _hf
from zoo.weights.importers._official import KeyMap
from zoo.weights.importers.hf_detr import _ENCODER, _HEADS, dense_transformer

ENTRY = "transformers.ConditionalDetrForObjectDetection"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {ENTRY: ("Detector",)}

_D, _O = "model.decoder.layers.{s}.", "transformer.decoder.layers.{s}."
_NAMES = KeyMap(
    [
        *_ENCODER,
        *((f"{_D}self_attn.{q}_{k}_proj.{{p}}", f"{_O}sa_{q}{k}_proj.{{p}}") for q in "qk" for k in ("content", "pos")),
        *(
            (f"{_D}encoder_attn.{q}_{k}_proj.{{p}}", f"{_O}ca_{q}{k}_proj.{{p}}")
            for q in "qk"
            for k in ("content", "pos")
        ),
        (f"{_D}self_attn.v_proj.{{p}}", f"{_O}sa_v_proj.{{p}}"),
        (f"{_D}encoder_attn.v_proj.{{p}}", f"{_O}ca_v_proj.{{p}}"),
        (f"{_D}encoder_attn.q_pos_sine_proj.{{p}}", f"{_O}ca_qpos_sine_proj.{{p}}"),
        (f"{_D}self_attn.o_proj.{{p}}", f"{_O}self_attn.out_proj.{{p}}"),
        (f"{_D}encoder_attn.o_proj.{{p}}", f"{_O}cross_attn.out_proj.{{p}}"),
        (f"{_D}self_attn_layer_norm.{{p}}", f"{_O}norm1.{{p}}"),
        (f"{_D}encoder_attn_layer_norm.{{p}}", f"{_O}norm2.{{p}}"),
        (f"{_D}final_layer_norm.{{p}}", f"{_O}norm3.{{p}}"),
        (f"{_D}mlp.fc{{n}}.{{p}}", f"{_O}linear{{n}}.{{p}}"),
        ("model.decoder.query_scale.layers.{s}.{p}", "transformer.decoder.query_scale.layers.{s}.{p}"),
        ("model.decoder.ref_point_head.layers.{s}.{p}", "transformer.decoder.ref_point_head.layers.{s}.{p}"),
        *_HEADS,
    ]
)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for a transformers config.

    Raises:
        LookupError: an unknown entry.
        ValueError: a value that is not supported.
    """
    from zoo.detection.conditional_detr import ConditionalDETR
    from zoo.detection.detector import Detector

    if entry != ENTRY:
        raise LookupError(f"entry {entry!r} is not known; accepted is {ENTRY!r}")
    network = dict(
        type=ConditionalDETR,
        num_classes=_hf.num_labels(kwargs),
        num_queries=kwargs.get("num_queries", 300),
        position=kwargs.get("position_embedding_type", "sine"),
        transformer=dense_transformer(entry, kwargs),
    )
    return dict(type=Detector, backbone=_hf.resnet_config(entry, kwargs, 1), network=network)


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict to ours; raises KeyError for a key that the model has not."""
    return _hf.convert(entry, state, _NAMES)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to transformers' (version 5, its own ResNet)."""
    return _hf.revert(entry, state, _NAMES)
