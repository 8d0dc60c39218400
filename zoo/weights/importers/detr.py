"""Importer of DETR checkpoints (https://github.com/facebookresearch/detr, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._detr import DENSE_SCRIPT, ONLY_TRAINING, detector_config, joined, parted, split_backbone
from zoo.weights.importers._detr import from_script as script
from zoo.weights.importers._official import official_arguments, refuse

NETWORK = "models/detr.py:DETR"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("Detector", "DETR")}

TRANSFORMER: dict[str, Any] = dict(
    d_model=512,
    nhead=8,
    num_encoder_layers=6,
    num_decoder_layers=6,
    dim_feedforward=2048,
    dropout=0.1,
    activation="relu",
    normalize_before=False,
    return_intermediate_dec=False,
)
_NETWORK: dict[str, Any] = dict(
    transformer=None,
    position_embedding="sine",
    num_classes=91,
    num_queries=100,
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
    from zoo.detection.detr import DETR

    if entry != NETWORK:
        raise LookupError(f"entry {entry!r} is not known; accepted is {NETWORK!r}")
    if "hidden_dim" in kwargs:
        kwargs = script(kwargs, DENSE_SCRIPT, ONLY_TRAINING)
    args = official_arguments(entry, {k: v for k, v in kwargs.items() if k not in ("backbone", "dilation")}, _NETWORK)
    inner = official_arguments(f"{entry} transformer", args["transformer"] or {}, TRANSFORMER)
    if not inner.pop("return_intermediate_dec") and args["aux_loss"]:
        raise refuse(entry, "return_intermediate_dec", False, "True where aux_loss is True")
    network = dict(
        type=DETR,
        num_classes=args["num_classes"],
        num_queries=args["num_queries"],
        position=position_kind(entry, args["position_embedding"]),
        aux_loss=args["aux_loss"],
        transformer=inner,
    )
    return detector_config(entry, kwargs, args, network, levels=1)


def position_kind(entry: str, value: Any) -> str:
    """ "sine" or "learned" ("v2" and "v3" in the authors' script)."""
    kinds = {"sine": "sine", "v2": "sine", "learned": "learned", "v3": "learned"}
    if value not in kinds:
        raise refuse(entry, "position_embedding", value, "'sine' and 'learned'")
    return kinds[value]


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours."""
    return joined(*split_backbone(state))


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors'."""
    backbone, network = parted(state)
    return {**backbone, **network}
