"""Importer of DINO checkpoints (https://github.com/IDEA-Research/DINO, Apache-2.0)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._detr import detector_config, joined, parted, split_backbone, without_copies
from zoo.weights.importers._official import official_arguments, refuse

NETWORK = "models/dino/dino.py:DINO"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("Detector", "DINO")}

_TRANSFORMER: dict[str, Any] = dict(
    d_model=256,
    nhead=8,
    num_queries=300,
    num_encoder_layers=6,
    num_unicoder_layers=0,
    num_decoder_layers=6,
    dim_feedforward=2048,
    dropout=0.0,
    activation="relu",
    normalize_before=False,
    return_intermediate_dec=False,
    query_dim=4,
    num_patterns=0,
    modulate_hw_attn=False,
    deformable_encoder=False,
    deformable_decoder=False,
    num_feature_levels=1,
    enc_n_points=4,
    dec_n_points=4,
    use_deformable_box_attn=False,
    box_attn_type="roi_align",
    learnable_tgt_init=False,
    decoder_query_perturber=None,
    add_channel_attention=False,
    add_pos_value=False,
    random_refpoints_xy=False,
    two_stage_type="no",
    two_stage_pat_embed=0,
    two_stage_add_query_num=0,
    two_stage_learn_wh=False,
    two_stage_keep_all_tokens=False,
    dec_layer_number=None,
    rm_enc_query_scale=True,
    rm_dec_query_scale=True,
    rm_self_attn_layers=None,
    key_aware_type=None,
    layer_share_type=None,
    rm_detach=None,
    decoder_sa_type="ca",
    module_seq=["sa", "ca", "ffn"],
    embed_init_tgt=False,
    use_detached_boxes_dec_out=False,
)
#: arguments of the transformer with the only value that is supported
_FIXED: dict[str, Any] = dict(
    num_unicoder_layers=0,
    normalize_before=False,
    return_intermediate_dec=True,
    query_dim=4,
    num_patterns=0,
    deformable_encoder=True,
    deformable_decoder=True,
    use_deformable_box_attn=False,
    learnable_tgt_init=True,
    decoder_query_perturber=None,
    add_channel_attention=False,
    add_pos_value=False,
    random_refpoints_xy=False,
    two_stage_pat_embed=0,
    two_stage_add_query_num=0,
    two_stage_learn_wh=False,
    two_stage_keep_all_tokens=False,
    dec_layer_number=None,
    rm_enc_query_scale=True,
    rm_dec_query_scale=True,
    rm_self_attn_layers=None,
    key_aware_type=None,
    layer_share_type=None,
    rm_detach=None,
    decoder_sa_type="sa",
    module_seq=["sa", "ca", "ffn"],
    use_detached_boxes_dec_out=False,
)
_NETWORK: dict[str, Any] = dict(
    transformer=None,
    position_embedding=None,
    num_classes=91,
    num_queries=900,
    aux_loss=False,
    iter_update=False,
    query_dim=2,
    random_refpoints_xy=False,
    fix_refpoints_hw=-1,
    num_feature_levels=1,
    nheads=8,
    two_stage_type="no",
    two_stage_add_query_num=0,
    dec_pred_class_embed_share=True,
    dec_pred_bbox_embed_share=True,
    two_stage_class_embed_share=True,
    two_stage_bbox_embed_share=True,
    decoder_sa_type="sa",
    num_patterns=0,
    dn_number=100,
    dn_box_noise_scale=0.4,
    dn_label_noise_ratio=0.5,
    dn_labelbook_size=100,
    backbone_channels=None,
    backbone_strides=None,
    resnet=None,
)
_NETWORK_FIXED: dict[str, Any] = dict(
    iter_update=True,
    query_dim=4,
    random_refpoints_xy=False,
    fix_refpoints_hw=-1,
    two_stage_add_query_num=0,
    decoder_sa_type="sa",
    num_patterns=0,
)
#: arguments of the backbone
_BACKBONE = ("backbone", "dilation", "return_interm_indices")
#: arguments of the authors' config files -> the transformer's
_SCRIPT = dict(
    hidden_dim="d_model",
    nheads="nhead",
    enc_layers="num_encoder_layers",
    dec_layers="num_decoder_layers",
    unic_layers="num_unicoder_layers",
    pre_norm="normalize_before",
    transformer_activation="activation",
    decoder_module_seq="module_seq",
    **{
        k: k
        for k in (
            "dim_feedforward", "dropout", "num_queries", "query_dim", "num_patterns", "num_feature_levels",
            "enc_n_points", "dec_n_points", "use_deformable_box_attn", "box_attn_type",
            "add_channel_attention", "add_pos_value",
            "random_refpoints_xy", "two_stage_type", "two_stage_pat_embed", "two_stage_add_query_num",
            "two_stage_learn_wh", "two_stage_keep_all_tokens", "decoder_sa_type", "embed_init_tgt",
            "use_detached_boxes_dec_out",
        )
    },
)  # fmt: skip


def _same_value(a: Any, b: Any) -> bool:
    return list(a) == list(b) if isinstance(b, list) and isinstance(a, (list, tuple)) else a == b


def from_script(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The constructors' arguments from those of the authors' config files (which checkpoints keep as ``args``)."""
    found: dict[str, Any] = {k: v for k, v in kwargs.items() if k in _NETWORK or k in _BACKBONE}
    found["position_embedding"] = {
        "temperatureH": kwargs.get("pe_temperatureH", 20),
        "temperatureW": kwargs.get("pe_temperatureW", 20),
    }
    found["iter_update"] = True
    found["transformer"] = {own: kwargs[k] for k, own in _SCRIPT.items() if k in kwargs} | dict(
        return_intermediate_dec=True,
        modulate_hw_attn=True,
        deformable_encoder=True,
        deformable_decoder=True,
        learnable_tgt_init=True,
    )
    if not kwargs.get("use_dn", True):
        found["dn_number"] = 0
    return found


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments: a whole detector where they name a backbone, else the network over maps.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    from zoo.detection.dino import DINO

    if entry != NETWORK:
        raise LookupError(f"entry {entry!r} is not known; accepted is {NETWORK!r}")
    if "hidden_dim" in kwargs:
        kwargs = from_script(kwargs)
    args = official_arguments(entry, {k: v for k, v in kwargs.items() if k not in _BACKBONE}, _NETWORK)
    inner = official_arguments(f"{entry} transformer", args["transformer"] or {}, _TRANSFORMER)
    for given, fixed, where in ((inner, _FIXED, "transformer."), (args, _NETWORK_FIXED, "")):
        for key, value in fixed.items():
            if not _same_value(given[key], value):
                raise refuse(entry, where + key, given[key], repr(value))
    for key in ("num_queries", "num_feature_levels", "two_stage_type"):
        if inner[key] != args[key]:
            raise refuse(entry, f"transformer.{key}", inner[key], f"the same as {key}={args[key]!r}")
    position = args["position_embedding"] or {}
    network: dict[str, Any] = dict(
        type=DINO,
        num_classes=args["num_classes"],
        num_queries=args["num_queries"],
        num_feature_levels=args["num_feature_levels"],
        temperature=(float(position.get("temperatureH", 20)), float(position.get("temperatureW", 20))),
        share_class_head=args["dec_pred_class_embed_share"],
        share_box_head=args["dec_pred_bbox_embed_share"],
        first_class_head_shared=args["two_stage_type"] != "no" and args["two_stage_class_embed_share"],
        first_box_head_shared=args["two_stage_type"] != "no" and args["two_stage_bbox_embed_share"],
        dn_number=args["dn_number"],
        dn_label_noise_ratio=args["dn_label_noise_ratio"],
        dn_box_noise_scale=args["dn_box_noise_scale"],
        dn_labelbook_size=args["dn_labelbook_size"],
        aux_loss=args["aux_loss"],
        transformer={
            k: inner[k]
            for k in (
                "d_model",
                "nhead",
                "num_encoder_layers",
                "num_decoder_layers",
                "dim_feedforward",
                "dropout",
                "activation",
                "enc_n_points",
                "dec_n_points",
                "two_stage_type",
                "embed_init_tgt",
            )
        },
    )
    return detector_config(entry, kwargs, args, network, levels=args["num_feature_levels"], swins=True)


_ALIAS = re.compile(r"transformer\.decoder\.((?:bbox|class)_embed\..*)")
_FIRST = {
    "transformer.enc_out_class_embed.": "first_class_embed.",
    "transformer.enc_out_bbox_embed.": "first_bbox_embed.",
}


def _same(key: str) -> str | None:
    """The decoder has the heads too."""
    match = _ALIAS.fullmatch(key)
    return match[1] if match else None


def _renamed(key: str, names: Mapping[str, str]) -> str:
    return next((new + key[len(old) :] for old, new in names.items() if key.startswith(old)), key)


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; the decoder's second names of the heads are dropped.

    Raises:
        ValueError: the two names of a head hold different numbers.
    """
    backbone, network = split_backbone(state)
    return joined(backbone, {_renamed(k, _FIRST): v for k, v in without_copies(network, _same).items()})


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors', second names of the heads included."""
    backbone, network = parted(state)
    names = {new: old for old, new in _FIRST.items()}
    own = {_renamed(k, names): v for k, v in network.items()}
    aliases = {f"transformer.decoder.{k}": v for k, v in own.items() if k.startswith(("bbox_embed.", "class_embed."))}
    return {**backbone, **own, **aliases}
