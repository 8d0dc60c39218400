"""Importer of Conditional DETR checkpoints (https://github.com/Atten4Vis/ConditionalDETR, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.weights.importers._detr import DENSE_SCRIPT, ONLY_TRAINING, detector_config
from zoo.weights.importers._detr import from_script as script
from zoo.weights.importers._official import official_arguments, refuse
from zoo.weights.importers.detr import TRANSFORMER, convert_state_dict, position_kind, revert_state_dict

__all__ = ["CHECKPOINTS", "NETWORK", "config_from_official", "convert_state_dict", "revert_state_dict"]

NETWORK = "models/conditional_detr.py:ConditionalDETR"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("Detector", "ConditionalDETR")}

_TRANSFORMER: dict[str, Any] = {**TRANSFORMER, "num_queries": 300}
_NETWORK: dict[str, Any] = dict(
    transformer=None,
    position_embedding="sine",
    num_classes=91,
    num_queries=300,
    aux_loss=True,
    backbone_channels=None,
    backbone_strides=None,
    resnet=None,
)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments: a whole detector where they name a backbone, else the network over maps.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    from zoo.detection.conditional_detr import ConditionalDETR

    if entry != NETWORK:
        raise LookupError(f"entry {entry!r} is not known; accepted is {NETWORK!r}")
    if "hidden_dim" in kwargs:
        kwargs = script(kwargs, DENSE_SCRIPT, ONLY_TRAINING)
    args = official_arguments(entry, {k: v for k, v in kwargs.items() if k not in ("backbone", "dilation")}, _NETWORK)
    inner = official_arguments(f"{entry} transformer", args["transformer"] or {}, _TRANSFORMER)
    if inner.pop("normalize_before"):
        raise refuse(entry, "normalize_before", True, "False (the authors' decoder has no such form)")
    if not inner.pop("return_intermediate_dec"):
        raise refuse(entry, "return_intermediate_dec", False, "True")
    inner.pop("num_queries")
    network = dict(
        type=ConditionalDETR,
        num_classes=args["num_classes"],
        num_queries=args["num_queries"],
        position=position_kind(entry, args["position_embedding"]),
        aux_loss=args["aux_loss"],
        transformer=inner,
    )
    return detector_config(entry, kwargs, args, network, levels=1)
