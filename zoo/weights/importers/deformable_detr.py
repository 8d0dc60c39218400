"""Importer of Deformable DETR checkpoints (https://github.com/fundamentalvision/Deformable-DETR, Apache-2.0)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._detr import detector_config, joined, parted, split_backbone, without_copies
from zoo.weights.importers._detr import from_script as constructor_arguments
from zoo.weights.importers._official import official_arguments, refuse

NETWORK = "models/deformable_detr.py:DeformableDETR"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("Detector", "DeformableDETR")}

_TRANSFORMER: dict[str, Any] = dict(
    d_model=256,
    nhead=8,
    num_encoder_layers=6,
    num_decoder_layers=6,
    dim_feedforward=1024,
    dropout=0.1,
    activation="relu",
    return_intermediate_dec=False,
    num_feature_levels=4,
    dec_n_points=4,
    enc_n_points=4,
    two_stage=False,
    two_stage_num_proposals=300,
)
_NETWORK: dict[str, Any] = dict(
    transformer=None,
    position_embedding="sine",
    num_classes=91,
    num_queries=300,
    num_feature_levels=4,
    aux_loss=True,
    with_box_refine=False,
    two_stage=False,
    backbone_channels=None,
    backbone_strides=None,
    resnet=None,
)
#: arguments of the authors' training script -> where they go
_SCRIPT = dict(
    hidden_dim="d_model",
    nheads="nhead",
    enc_layers="num_encoder_layers",
    dec_layers="num_decoder_layers",
    dim_feedforward="dim_feedforward",
    dropout="dropout",
    dec_n_points="dec_n_points",
    enc_n_points="enc_n_points",
    num_feature_levels="num_feature_levels",
    two_stage="two_stage",
    num_queries="two_stage_num_proposals",
)
_ONLY_TRAINING = {
    "set_cost_class", "set_cost_bbox", "set_cost_giou", "cls_loss_coef", "bbox_loss_coef", "giou_loss_coef",
    "mask_loss_coef", "dice_loss_coef", "focal_alpha", "masks",
}  # fmt: skip


def from_script(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments from those of the authors' training script (which checkpoints keep as ``args``)."""
    both = {k: kwargs[k] for k in ("num_queries", "num_feature_levels", "two_stage") if k in kwargs}
    return constructor_arguments(kwargs, _SCRIPT, _ONLY_TRAINING) | both


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments: a whole detector where they name a backbone, else the network over maps.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    from zoo.detection.deformable_detr import DeformableDETR

    if entry != NETWORK:
        raise LookupError(f"entry {entry!r} is not known; accepted is {NETWORK!r}")
    if "hidden_dim" in kwargs:
        kwargs = from_script(kwargs)
    given = {k: v for k, v in kwargs.items() if k not in ("backbone", "dilation")}
    args = official_arguments(entry, given, _NETWORK)
    inner = official_arguments(f"{entry} transformer", args["transformer"] or {}, _TRANSFORMER)
    for key in ("num_feature_levels", "two_stage"):
        if inner[key] != args[key]:
            raise refuse(entry, f"transformer.{key}", inner[key], f"the same as {key}={args[key]}")
    if inner["two_stage"] and inner["two_stage_num_proposals"] != args["num_queries"]:
        raise refuse(entry, "two_stage_num_proposals", inner["two_stage_num_proposals"], "the same as num_queries")
    if not inner.pop("return_intermediate_dec"):
        raise refuse(entry, "return_intermediate_dec", False, "True")
    for key in ("num_feature_levels", "two_stage", "two_stage_num_proposals"):
        inner.pop(key)
    network: dict[str, Any] = dict(
        type=DeformableDETR,
        num_classes=args["num_classes"],
        num_queries=args["num_queries"],
        num_feature_levels=args["num_feature_levels"],
        with_box_refine=args["with_box_refine"],
        two_stage=args["two_stage"],
        aux_loss=args["aux_loss"],
        position=args["position_embedding"],
        transformer=inner,
    )
    return detector_config(entry, kwargs, args, network, levels=args["num_feature_levels"])


_ALIAS = re.compile(r"transformer\.decoder\.((?:bbox|class)_embed\..*)")


def _same(key: str) -> str | None:
    """The decoder has the heads too."""
    match = _ALIAS.fullmatch(key)
    return match[1] if match else None


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; the decoder's second names of the heads are dropped.

    Raises:
        ValueError: the two names of a head hold different numbers.
    """
    backbone, network = split_backbone(state)
    return joined(backbone, without_copies(network, _same))


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors', second names of the heads included."""
    backbone, network = parted(state)
    # Heads that layers share were never moved along; those that are moved along also belong to the decoder.
    first = [k for k in network if k.startswith("bbox_embed.0.")]
    refined = any(k.startswith("bbox_embed.1.") for k in network) and not all(
        network[k].data_ptr() == network[k.replace(".0.", ".1.", 1)].data_ptr() for k in first
    )
    two_stage = "transformer.enc_output.weight" in network
    aliases = {}
    for key, value in network.items():
        if (refined and key.startswith("bbox_embed.")) or (two_stage and key.startswith("class_embed.")):
            aliases[f"transformer.decoder.{key}"] = value
    return {**backbone, **network, **aliases}
