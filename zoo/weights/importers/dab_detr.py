"""Importer of DAB-DETR and DAB-Deformable-DETR checkpoints (https://github.com/IDEA-Research/DAB-DETR, Apache-2.0).

DN-DETR's are the same with an embedding of classes: :mod:`zoo.weights.importers.dn_detr`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._detr import (
    DENSE_SCRIPT,
    ONLY_TRAINING,
    detector_config,
    joined,
    parted,
    split_backbone,
    without_copies,
)
from zoo.weights.importers._detr import from_script as script
from zoo.weights.importers._official import official_arguments, refuse

NETWORK = "models/DAB_DETR/DABDETR.py:DABDETR"
DEFORMABLE = "models/dab_deformable_detr/dab_deformable_detr.py:DABDeformableDETR"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("Detector", "DABDETR"), DEFORMABLE: ("Detector", "DABDeformableDETR")}

_TRANSFORMER: dict[str, Any] = dict(
    d_model=512,
    nhead=8,
    num_queries=300,
    num_encoder_layers=6,
    num_decoder_layers=6,
    dim_feedforward=2048,
    dropout=0.1,
    activation="relu",
    normalize_before=False,
    return_intermediate_dec=False,
    query_dim=4,
    keep_query_pos=False,
    query_scale_type="cond_elewise",
    num_patterns=0,
    modulate_hw_attn=True,
    bbox_embed_diff_each_layer=False,
)
_NETWORK: dict[str, Any] = dict(
    transformer=None,
    position_embedding=None,
    dn_scalar=None,
    num_classes=91,
    num_queries=300,
    aux_loss=False,
    iter_update=True,
    query_dim=4,
    bbox_embed_diff_each_layer=False,
    random_refpoints_xy=False,
    num_dec_layers=None,
    backbone_channels=None,
    backbone_strides=None,
    resnet=None,
)
_DEFORMABLE_TRANSFORMER: dict[str, Any] = dict(
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
    use_dab=False,
    high_dim_query_update=False,
    no_sine_embed=False,
)
_DEFORMABLE_NETWORK: dict[str, Any] = dict(
    transformer=None,
    position_embedding="sine",
    dn_scalar=None,
    num_classes=91,
    num_queries=300,
    num_feature_levels=4,
    aux_loss=True,
    with_box_refine=False,
    two_stage=False,
    use_dab=True,
    num_patterns=0,
    random_refpoints_xy=False,
    backbone_channels=None,
    backbone_strides=None,
    resnet=None,
)
_DEFORMABLE_SCRIPT = {
    **{k: v for k, v in DENSE_SCRIPT.items() if k != "pre_norm"},
    "num_feature_levels": "num_feature_levels",
    "dec_n_points": "dec_n_points",
    "enc_n_points": "enc_n_points",
}


def dense_config(entry: str, kwargs: Mapping[str, Any], dn_groups: int | None) -> dict[str, Any]:
    """The spec of a network over one map; ``dn_groups`` as :class:`zoo.detection.dab_detr.DABDETR` has it."""
    from zoo.detection.dab_detr import DABDETR

    if "hidden_dim" in kwargs:
        position = {
            "temperatureH": kwargs.get("pe_temperatureH", 20),
            "temperatureW": kwargs.get("pe_temperatureW", 20),
        }
        skipped = ONLY_TRAINING | {
            "num_feature_levels", "dec_n_points", "enc_n_points", "two_stage", "position_embedding", "num_select",
            "scalar", "label_noise_scale", "box_noise_scale", "pe_temperatureH", "pe_temperatureW",
        }  # fmt: skip
        activation = kwargs.get("transformer_activation", "prelu")
        kwargs = script({k: v for k, v in kwargs.items() if k != "transformer_activation"}, DENSE_SCRIPT, skipped)
        patterns = kwargs.pop("num_patterns", 0)
        kwargs["transformer"] |= {"num_patterns": patterns, "num_queries": kwargs.get("num_queries", 300)}
        kwargs["transformer"]["activation"] = activation
        kwargs |= {"position_embedding": position, "aux_loss": True}
    given = {k: v for k, v in kwargs.items() if k not in ("backbone", "dilation")}
    args = official_arguments(entry, given, _NETWORK)
    inner = official_arguments(f"{entry} transformer", args["transformer"] or {}, _TRANSFORMER)
    for key, value in (("iter_update", True), ("query_dim", 4)):
        if args[key] != value:
            raise refuse(entry, key, args[key], repr(value))
    if not inner.pop("return_intermediate_dec"):
        raise refuse(entry, "return_intermediate_dec", False, "True")
    for key, value in (("query_dim", 4), ("bbox_embed_diff_each_layer", args["bbox_embed_diff_each_layer"])):
        if inner.pop(key) != value:
            raise refuse(entry, f"transformer.{key}", not value, repr(value))
    if args["num_dec_layers"] not in (None, inner["num_decoder_layers"], 6):
        raise refuse(
            entry, "num_dec_layers", args["num_dec_layers"], f"{inner['num_decoder_layers']}, as the decoder has"
        )
    inner.pop("num_queries")
    position = args["position_embedding"] or {}
    network = dict(
        type=DABDETR,
        num_classes=args["num_classes"],
        num_queries=args["num_queries"],
        temperature=(float(position.get("temperatureH", 20)), float(position.get("temperatureW", 20))),
        box_head_each_layer=args["bbox_embed_diff_each_layer"],
        random_refpoints_xy=args["random_refpoints_xy"],
        dn_groups=dn_groups,
        aux_loss=args["aux_loss"],
        transformer=inner,
    )
    return detector_config(entry, kwargs, args, network, levels=1)


def deformable_config(entry: str, kwargs: Mapping[str, Any], dn_groups: int | None) -> dict[str, Any]:
    """The spec of a network over several maps."""
    from zoo.detection.dab_deformable_detr import DABDeformableDETR

    if "hidden_dim" in kwargs:
        skipped = ONLY_TRAINING | {
            "pre_norm", "position_embedding", "num_select", "scalar", "label_noise_scale", "box_noise_scale",
            "pe_temperatureH", "pe_temperatureW", "transformer_activation", "modelname",
        }  # fmt: skip
        levels = kwargs.get("num_feature_levels", 4)
        kwargs = script(kwargs, _DEFORMABLE_SCRIPT, skipped)
        kwargs["transformer"]["use_dab"] = True
        kwargs |= {"with_box_refine": True, "use_dab": True, "num_feature_levels": levels}
    given = {k: v for k, v in kwargs.items() if k not in ("backbone", "dilation")}
    args = official_arguments(entry, given, _DEFORMABLE_NETWORK)
    inner = official_arguments(f"{entry} transformer", args["transformer"] or {}, _DEFORMABLE_TRANSFORMER)
    fixed = dict(with_box_refine=True, two_stage=False, use_dab=True, position_embedding="sine")
    for key, value in fixed.items():
        if args[key] != value:
            raise refuse(entry, key, args[key], repr(value))
    fixed = dict(two_stage=False, use_dab=True, high_dim_query_update=False, no_sine_embed=False)
    fixed |= dict(return_intermediate_dec=True, num_feature_levels=args["num_feature_levels"])
    for key, value in fixed.items():
        if inner[key] != value:
            raise refuse(entry, f"transformer.{key}", inner[key], repr(value))
        inner.pop(key)
    inner.pop("two_stage_num_proposals")
    network = dict(
        type=DABDeformableDETR,
        num_classes=args["num_classes"],
        num_queries=args["num_queries"],
        num_feature_levels=args["num_feature_levels"],
        num_patterns=args["num_patterns"],
        random_refpoints_xy=args["random_refpoints_xy"],
        dn_groups=dn_groups,
        aux_loss=args["aux_loss"],
        transformer=inner,
    )
    return detector_config(entry, kwargs, args, network, levels=args["num_feature_levels"])


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments: a whole detector where they name a backbone, else the network over maps.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    if kwargs.get("dn_scalar") is not None:
        raise refuse(entry, "dn_scalar", kwargs["dn_scalar"], "None (DN-DETR has denoising)")
    if entry == NETWORK:
        return dense_config(entry, kwargs, None)
    if entry == DEFORMABLE:
        return deformable_config(entry, kwargs, None)
    raise LookupError(f"entry {entry!r} is not known; accepted are {NETWORK!r} and {DEFORMABLE!r}")


_ALIAS = re.compile(r"transformer\.decoder\.(bbox_embed\..*)")


def _same(key: str) -> str | None:
    """The decoder has the box heads too."""
    match = _ALIAS.fullmatch(key)
    return match[1] if match else None


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; the decoder's second names of the box heads are dropped.

    Raises:
        ValueError: the two names of a head hold different numbers.
    """
    backbone, network = split_backbone(state)
    return joined(backbone, without_copies(network, _same))


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors', second names of the box heads included."""
    backbone, network = parted(state)
    aliases = {f"transformer.decoder.{k}": v for k, v in network.items() if k.startswith("bbox_embed.")}
    return {**backbone, **network, **aliases}
