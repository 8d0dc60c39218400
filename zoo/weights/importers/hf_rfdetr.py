"""Importer of Hugging Face transformers' RF-DETR checkpoints (Apache-2.0), such as Roboflow/rf-detr-base.

An entry is transformers' class, its arguments those of the class's config (as in ``config.json``), with those of the
backbone under ``backbone_config``. Differences that the config leaves no choice of: tokens at the border are never
chosen by the first stage, and the neck's norms have ``layer_norm_eps``. transformers cuts windows of images that are
not square in another way than the authors; here they are cut as the authors do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers import rfdetr
from zoo.weights.importers._official import KeyMap, official_arguments, refuse
from zoo.weights.importers.rfdetr import join_qkv, split_qkv

DETECTION = "transformers.RfDetrForObjectDetection"
SEGMENTATION = "transformers.RfDetrForInstanceSegmentation"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {DETECTION: ("Detector", "RFDETR"), SEGMENTATION: ("Detector", "RFDETR")}

_ARGUMENTS: dict[str, Any] = dict(
    backbone_config=None,
    hidden_expansion=0.5,
    c2f_num_blocks=3,
    activation_function="silu",
    dropout=0.1,
    decoder_ffn_dim=2048,
    decoder_n_points=4,
    decoder_layers=3,
    decoder_self_attention_heads=8,
    decoder_cross_attention_heads=16,
    decoder_activation_function="relu",
    num_queries=300,
    attention_bias=True,
    attention_dropout=0.0,
    activation_dropout=0.0,
    group_detr=13,
    auxiliary_loss=True,
    d_model=256,
    layer_norm_eps=1e-5,
    num_feature_levels=1,
    mask_downsample_ratio=4,
    segmentation_head_activation_function="gelu",
    intermediate_size=1024,
    num_labels=None,
    id2label=None,
)
_FIXED: dict[str, Any] = dict(
    activation_function="silu",
    decoder_activation_function="relu",
    attention_bias=True,
    num_feature_levels=1,
    segmentation_head_activation_function="gelu",
)
_BACKBONE_ARGUMENTS: dict[str, Any] = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    mlp_ratio=4,
    hidden_act="gelu",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    layer_norm_eps=1e-6,
    image_size=224,
    patch_size=14,
    num_channels=3,
    qkv_bias=True,
    layerscale_value=1.0,
    drop_path_rate=0.0,
    use_swiglu_ffn=False,
    out_features=None,
    out_indices=None,
    apply_layernorm=True,
    reshape_hidden_states=True,
    use_mask_token=True,
    num_windows=4,
    num_register_tokens=0,
)
_BACKBONE_FIXED: dict[str, Any] = dict(
    hidden_act="gelu",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    apply_layernorm=True,
    reshape_hidden_states=True,
    use_swiglu_ffn=False,
    num_register_tokens=0,
)
#: what the configs say beside the network, and what only losses read
_ABOUT = frozenset(
    {
        "architectures", "dtype", "torch_dtype", "model_type", "transformers_version", "label2id", "stage_names",
        "initializer_range", "init_std", "window_block_indexes", "disable_custom_kernels", "class_cost", "bbox_cost",
        "giou_cost", "class_loss_coefficient", "dice_loss_coefficient", "bbox_loss_coefficient",
        "giou_loss_coefficient", "eos_coefficient", "focal_alpha", "mask_loss_coefficient", "mask_point_sample_ratio",
        "mask_class_loss_coefficient", "mask_dice_loss_coefficient", "use_cache", "output_attentions",
        "output_hidden_states", "return_dict", "is_encoder_decoder", "problem_type", "chunk_size_feed_forward",
        "_name_or_path", "_commit_hash",
    }
)  # fmt: skip


def _without(kwargs: Mapping[str, Any], *more: str) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if k not in _ABOUT and k not in more}


def _check(entry: str, args: Mapping[str, Any], fixed: Mapping[str, Any], where: str = "") -> None:
    for key, value in fixed.items():
        if args[key] != value:
            raise refuse(entry, where + key, args[key], repr(value))


def _backbone(entry: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    from zoo.backbones.dinov2_windowed import WindowedDINOv2

    if given is None:
        given = dict(
            num_attention_heads=6,
            hidden_size=384,
            image_size=518,
            out_features=["stage2", "stage5", "stage8", "stage11"],
        )
    b = official_arguments(f"{entry} backbone_config", _without(given, "id2label", "num_labels"), _BACKBONE_ARGUMENTS)
    _check(entry, b, _BACKBONE_FIXED, "backbone_config.")
    depth = b["num_hidden_layers"]
    stages = [int(s.removeprefix("stage")) for s in b["out_features"]] if b["out_features"] else b["out_indices"]
    stages = [depth] if not stages else [s % (depth + 1) for s in stages]
    if stages != sorted(set(stages)) or stages[0] < 1:
        raise refuse(entry, "backbone_config.out_indices", stages, f"increasing numbers from 1 to {depth}")
    windowed = set(range(stages[-1] + 1)) - set(stages)
    if isinstance(b["patch_size"], (list, tuple)) or isinstance(b["image_size"], (list, tuple)):
        raise refuse(entry, "backbone_config.patch_size, image_size", (b["patch_size"], b["image_size"]), "numbers")
    return dict(
        type=WindowedDINOv2,
        embed_dim=b["hidden_size"],
        depth=depth,
        num_heads=b["num_attention_heads"],
        patch_size=b["patch_size"],
        table_size=b["image_size"] // b["patch_size"],
        num_windows=b["num_windows"],
        global_blocks=sorted(set(range(depth)) - windowed),
        out_indices=tuple(s - 1 for s in stages),
        mlp_ratio=b["mlp_ratio"],
        qkv_bias=b["qkv_bias"],
        layer_scale=b["layerscale_value"],
        norm_eps=b["layer_norm_eps"],
        drop_path_rate=b["drop_path_rate"],
        mask_token=b["use_mask_token"],
        in_chans=b["num_channels"],
    )


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec of the whole detector from transformers' class and the arguments of its config.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the config does not have.
        ValueError: a value that is not supported.
    """
    from zoo.detection.detector import Detector
    from zoo.detection.rfdetr import RFDETR

    _check_entry(entry)
    a = official_arguments(entry, _without(kwargs), _ARGUMENTS)
    _check(entry, a, _FIXED)
    labels = a["num_labels"] if a["num_labels"] is not None else len(a["id2label"] or ()) or 2
    backbone = _backbone(entry, a["backbone_config"])
    masks = entry == SEGMENTATION
    network = dict(
        type=RFDETR,
        num_classes=labels,
        num_queries=a["num_queries"],
        groups=a["group_detr"],
        stride=backbone["patch_size"],
        aux_loss=a["auxiliary_loss"],
        segmentation_head=masks,
        mask_downsample_ratio=a["mask_downsample_ratio"],
        mask_hidden=a["intermediate_size"] if masks else None,
        projector=dict(blocks=a["c2f_num_blocks"], eps=a["layer_norm_eps"], expansion=a["hidden_expansion"]),
        transformer=dict(
            d_model=a["d_model"],
            sa_heads=a["decoder_self_attention_heads"],
            ca_heads=a["decoder_cross_attention_heads"],
            num_layers=a["decoder_layers"],
            dim_feedforward=a["decoder_ffn_dim"],
            dropout=a["dropout"],
            n_points=a["decoder_n_points"],
            only_usable=True,
        ),
    )
    return dict(type=Detector, backbone=backbone, network=network)


_CONV = [("conv.weight", "conv.weight"), ("norm.{p}", "bn.{p}")]
_C2F = [(f"conv{{n}}.{a}", f"cv{{n}}.{b}") for a, b in _CONV]
_PROJECTOR = [
    ("layer_norm.{p}", "stages.0.1.{p}"),
    *((f"projector_layer.{a}", f"stages.0.0.{b}") for a, b in _C2F),
    *((f"projector_layer.bottlenecks.{{s}}.{a}", f"stages.0.0.m.{{s}}.{b}") for a, b in _C2F),
]
_LAYER = [
    ("self_attn.in_proj_{p}", "self_attn.in_proj_{p}"),
    ("self_attn.o_proj.{p}", "self_attn.out_proj.{p}"),
    ("self_attn_layer_norm.{p}", "norm1.{p}"),
    ("cross_attn.{part}.{p}", "cross_attn.{part}.{p}"),
    ("cross_attn_layer_norm.{p}", "norm2.{p}"),
    ("mlp.fc{n}.{p}", "linear{n}.{p}"),
    ("layer_norm.{p}", "norm3.{p}"),
]
_CROSS = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_MODEL = [
    ("reference_point_embed.weight", "refpoint_embed.weight"),
    ("query_feat.weight", "query_feat.weight"),
    ("decoder.layernorm.{p}", "transformer.decoder.norm.{p}"),
    ("decoder.ref_point_head.layers.{n}.{p}", "transformer.decoder.ref_point_head.layers.{n}.{p}"),
    ("enc_output.{s}.{p}", "transformer.enc_output.{s}.{p}"),
    ("enc_output_norm.{s}.{p}", "transformer.enc_output_norm.{s}.{p}"),
    ("enc_out_bbox_embed.{s}.layers.{n}.{p}", "enc_out_bbox_embed.{s}.layers.{n}.{p}"),
    ("enc_out_class_embed.{s}.{p}", "enc_out_class_embed.{s}.{p}"),
    *((f"backbone.projector.{a}", f"projector.{b}") for a, b in _PROJECTOR),
    *(
        (f"decoder.layers.{{i}}.{a}", f"transformer.decoder.layers.{{i}}.{b}")
        for template in _LAYER
        for a, b in (
            [template]
            if "{part}" not in template[0]
            else [tuple(t.replace("{part}", part) for t in template) for part in _CROSS]
        )
    ),
]
_HEADS = [
    ("class_embed.{p}", "class_embed.{p}"),
    ("bbox_embed.layers.{n}.{p}", "bbox_embed.layers.{n}.{p}"),
    *((f"model.{a}", b) for a, b in _MODEL),
]
_MASKS = [
    ("segmentation_bias", "segmentation_head.bias"),
    ("blocks.{s}.depthwise_conv.{p}", "segmentation_head.blocks.{s}.dwconv.{p}"),
    ("blocks.{s}.layernorm.{p}", "segmentation_head.blocks.{s}.norm.{p}"),
    ("blocks.{s}.pointwise_conv.{p}", "segmentation_head.blocks.{s}.pwconv1.{p}"),
    ("spatial_features_proj.{p}", "segmentation_head.spatial_features_proj.{p}"),
    ("query_features_proj.{p}", "segmentation_head.query_features_proj.{p}"),
    ("query_features_block.norm.{p}", "segmentation_head.query_features_block.norm_in.{p}"),
    ("query_features_block.mlp.fc1.{p}", "segmentation_head.query_features_block.layers.0.{p}"),
    ("query_features_block.mlp.fc2.{p}", "segmentation_head.query_features_block.layers.2.{p}"),
    *((f"model.{a}", b) for a, b in _HEADS),
]
_NETWORK = {DETECTION: KeyMap(_HEADS), SEGMENTATION: KeyMap(_MASKS)}
_VIT = {DETECTION: "model.backbone.backbone.", SEGMENTATION: "model.model.backbone.backbone."}
_QKV = ("q_proj", "k_proj", "v_proj")
_ACTIVE = "network.keypoint_active"


def _check_entry(entry: str) -> None:
    if entry not in _VIT:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(map(repr, _VIT))}")


def _attention_of_queries(state: Mapping[str, Tensor], back: bool) -> dict[str, Tensor]:
    """The decoder's queries, keys and values in one parameter, as ``nn.MultiheadAttention`` has them, or apart."""
    names = tuple(f"self_attn.{n}" for n in _QKV)
    if back:
        dotted = {k.replace("self_attn.in_proj_", "self_attn.in_proj."): v for k, v in state.items()}
        return split_qkv(dotted, names, "self_attn.in_proj")  # type: ignore[arg-type]
    joined = join_qkv(state, names, "self_attn.in_proj")  # type: ignore[arg-type]
    return {k.replace("self_attn.in_proj.", "self_attn.in_proj_"): v for k, v in joined.items()}


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict to ours.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that transformers' class has not, or a query without its key and value.
    """
    _check_entry(entry)
    prefix = _VIT[entry]
    backbone, rest = {}, {}
    for key, value in state.items():
        if key.startswith(prefix):
            name = key[len(prefix) :].replace(".attention.o_proj.", ".attention.output.dense.")
            backbone[rfdetr._VIT_PREFIX + name] = value
        else:
            rest[key] = value
    parts = tuple(f"attention.{n}" for n in _QKV)
    official = tuple(f"attention.attention.{n}" for n in ("query", "key", "value"))
    for old, new in zip(parts, official):
        backbone = {k.replace(f".{old}.", f".{new}."): v for k, v in backbone.items()}
    found = rfdetr.convert_state_dict(rfdetr.NETWORK, backbone)
    network = _NETWORK[entry].convert(_attention_of_queries(rest, back=False))
    empty = torch.zeros(0, 0, dtype=torch.bool)
    return {**found, **{f"network.{k}": v for k, v in network.items()}, _ACTIVE: empty}


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    _check_entry(entry)
    network = {k[len("network.") :]: v for k, v in state.items() if k.startswith("network.") and k != _ACTIVE}
    others = {k: v for k, v in state.items() if not k.startswith("network.")}
    backbone = rfdetr.revert_state_dict(rfdetr.NETWORK, others)
    found = {}
    for key, value in backbone.items():
        name = key[len(rfdetr._VIT_PREFIX) :].replace(".attention.output.dense.", ".attention.o_proj.")
        for new, old in zip(_QKV, ("query", "key", "value")):
            name = name.replace(f".attention.attention.{old}.", f".attention.{new}.")
        found[_VIT[entry] + name] = value
    return found | _attention_of_queries(_NETWORK[entry].revert(network), back=True)
