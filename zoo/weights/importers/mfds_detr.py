"""Importer of MFDS-DETR checkpoints (https://github.com/JustlfC03/MFDS-DETR; Deformable DETR's headers: Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers import deformable_detr
from zoo.weights.importers._detr import BACKBONE, detector_config
from zoo.weights.importers._official import official_arguments, refuse

NETWORK = "modules.deformable_detr.DeformableDETR"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("Detector", "MFDSDETR", "DeformableDETR")}

_ARGUMENTS: dict[str, Any] = dict(
    hidden_dim=256,
    nheads=8,
    enc_layers=6,
    dec_layers=6,
    dim_feedforward=1024,
    dropout=0.1,
    num_feature_levels=4,
    dec_n_points=4,
    enc_n_points=4,
    num_queries=100,
    num_classes=6,
    num_channels=None,
    two_stage=False,
    with_box_refine=False,
    with_fpn=False,
    method_fpn=None,
    image_sizes=None,
    resnet=None,
)
_PYRAMID = ("top_feature_proj.", "upbottom_conv.", "weight_conv.", "up_sample_conv.", "lateral_conv.")


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments: a whole detector where they name a backbone, else the network over maps.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' script does not have, or that is not supported.
    """
    from zoo.detection.deformable_detr import DeformableDETR
    from zoo.detection.mfds_detr import MFDSDETR

    if entry != NETWORK:
        raise LookupError(f"entry {entry!r} is not known; accepted is {NETWORK!r}")
    args = official_arguments(entry, {k: v for k, v in kwargs.items() if k not in ("backbone", "dilation")}, _ARGUMENTS)
    if args["with_fpn"] and args["method_fpn"] != "wbcfpn":
        raise refuse(
            entry, "method_fpn", args["method_fpn"], "'wbcfpn' (the authors' other necks fail in their own code)"
        )
    network: dict[str, Any] = dict(
        type=MFDSDETR if args["with_fpn"] else DeformableDETR,
        num_classes=args["num_classes"],
        num_queries=args["num_queries"],
        num_feature_levels=args["num_feature_levels"],
        with_box_refine=args["with_box_refine"],
        two_stage=args["two_stage"],
        transformer=dict(
            d_model=args["hidden_dim"],
            nhead=args["nheads"],
            num_encoder_layers=args["enc_layers"],
            num_decoder_layers=args["dec_layers"],
            dim_feedforward=args["dim_feedforward"],
            dropout=args["dropout"],
            dec_n_points=args["dec_n_points"],
            enc_n_points=args["enc_n_points"],
        ),
    )
    if args["with_fpn"]:
        network["keep_unused"] = True
    return detector_config(
        entry, kwargs, {"backbone_channels": args["num_channels"]}, network, levels=args["num_feature_levels"]
    )


def _copied(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Heads that all layers share, given once, under the names of all layers."""
    found = dict(state)
    for kind in ("class_embed", "bbox_embed"):
        if any(k.startswith(f"{kind}.1.") for k in state):
            continue
        for key in [k for k in state if k.startswith(f"{kind}.0.")]:
            found |= {key.replace(".0.", f".{i}.", 1): state[key] for i in range(1, layers)}
    return found


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; shared heads may be given once or under the name of every layer."""
    layers = 1 + max(int(k.split(".")[3]) for k in state if k.startswith("transformer.decoder.layers."))
    own = deformable_detr.convert_state_dict(deformable_detr.NETWORK, _copied(state, layers))
    network = "network." if any(k.startswith(BACKBONE) for k in state) else ""
    moved = {}
    for key, value in own.items():
        name = key.removeprefix(network)
        moved[f"{network}fpn.{name}" if name.startswith(_PYRAMID) else key] = value
    return moved


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors', shared heads under the names of all layers."""
    names = {k: k.replace("fpn.", "", 1) if k.removeprefix("network.").startswith("fpn.") else k for k in state}
    return deformable_detr.revert_state_dict(deformable_detr.NETWORK, {names[k]: v for k, v in state.items()})
