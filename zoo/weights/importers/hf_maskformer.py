"""Importer of Hugging Face transformers' MaskFormer checkpoints (Apache-2.0), such as
facebook/maskformer-swin-base-ade.

An entry is transformers' class, its arguments those of the class's config (as in ``config.json``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers import _hf, _hf_masks
from zoo.weights.importers._official import KeyMap, refuse

ENTRY = "transformers.MaskFormerForInstanceSegmentation"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {ENTRY: ("MaskSegmenter",)}

_PIXELS = "model.pixel_level_module.decoder."
_QUERIES = "model.transformer_module."
_LAYER = _QUERIES + "decoder.layers.{s}."
_NAMES = KeyMap(
    [
        (_PIXELS + "fpn.stem.{n}.{p}", "pixel_decoder.stem.{n}.{p}"),
        (_PIXELS + "fpn.layers.{s}.proj.{n}.{p}", "pixel_decoder.laterals.{s}.{n}.{p}"),
        (_PIXELS + "fpn.layers.{s}.block.{n}.{p}", "pixel_decoder.outputs.{s}.{n}.{p}"),
        (_PIXELS + "mask_projection.{p}", "pixel_decoder.mask_features.{p}"),
        (_QUERIES + "queries_embedder.{p}", "query_embed.{p}"),
        (_QUERIES + "input_projection.{p}", "input_proj.{p}"),
        (_LAYER + "self_attn.in_proj_{p}", "decoder.layers.{s}.self_attn.in_proj_{p}"),
        (_LAYER + "self_attn.o_proj.{p}", "decoder.layers.{s}.self_attn.out_proj.{p}"),
        (_LAYER + "encoder_attn.in_proj_{p}", "decoder.layers.{s}.multihead_attn.in_proj_{p}"),
        (_LAYER + "encoder_attn.o_proj.{p}", "decoder.layers.{s}.multihead_attn.out_proj.{p}"),
        (_LAYER + "self_attn_layer_norm.{p}", "decoder.layers.{s}.norm1.{p}"),
        (_LAYER + "encoder_attn_layer_norm.{p}", "decoder.layers.{s}.norm2.{p}"),
        (_LAYER + "final_layer_norm.{p}", "decoder.layers.{s}.norm3.{p}"),
        (_LAYER + "mlp.fc{n}.{p}", "decoder.layers.{s}.linear{n}.{p}"),
        (_QUERIES + "decoder.layernorm.{p}", "decoder.norm.{p}"),
        ("class_predictor.{p}", "class_embed.{p}"),
        ("mask_embedder.{s}.0.{p}", "mask_embed.layers.{s}.{p}"),
    ]
)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for a transformers config.

    Raises:
        LookupError: an unknown entry.
        ValueError: a value that is not supported.
    """
    from zoo.segmentation.mask_segmenter import MaskSegmenter
    from zoo.segmentation.maskformer import MaskFormer

    if entry != ENTRY:
        raise LookupError(f"entry {entry!r} is not known; accepted is {ENTRY!r}")
    decoder = _hf_masks.as_mapping(kwargs.get("decoder_config"))
    if decoder.get("model_type", "detr") != "detr":
        raise refuse(entry, "decoder_config.model_type", decoder["model_type"], "'detr'")
    if decoder.get("auxiliary_loss", False):
        # transformers then normalises what the next layer reads, which the authors do not.
        raise refuse(entry, "decoder_config.auxiliary_loss", True, "False (use_auxiliary_loss is the model's own)")
    network = dict(
        type=MaskFormer,
        num_classes=_hf.num_labels(kwargs),
        num_queries=decoder.get("num_queries", 100),
        dim=kwargs.get("fpn_feature_size", 256),
        mask_dim=kwargs.get("mask_feature_size", 256),
        d_model=decoder.get("d_model", 256),
        nhead=decoder.get("decoder_attention_heads", 8),
        num_decoder_layers=decoder.get("decoder_layers", 6),
        dim_feedforward=decoder.get("decoder_ffn_dim", 2048),
        dropout=decoder.get("dropout", 0.1),
        activation=decoder.get("activation_function", "relu"),
    )
    return dict(type=MaskSegmenter, backbone=_hf_masks.backbone_config(entry, kwargs), network=network)


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict to ours; raises KeyError for a key that the model has not."""
    queries = {k: v for k, v in state.items() if k.startswith(_QUERIES)}
    others = {k: v for k, v in state.items() if not k.startswith(_QUERIES)}
    return _hf_masks.convert({**others, **_hf.merge_projections(_hf.as_new(queries))}, _NAMES)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to transformers' (version 5), without what it holds besides weights."""
    return _hf.split_projections(_hf_masks.revert(state, _NAMES, maskformer=True))
