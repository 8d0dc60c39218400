"""Importer of DN-DETR and DN-Deformable-DETR checkpoints (https://github.com/IDEA-Research/DN-DETR, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.weights.importers.dab_detr import (
    convert_state_dict,
    deformable_config,
    dense_config,
    revert_state_dict,
)

__all__ = ["CHECKPOINTS", "DEFORMABLE", "NETWORK", "config_from_official", "convert_state_dict", "revert_state_dict"]

NETWORK = "models/DN_DAB_DETR/DABDETR.py:DABDETR"
DEFORMABLE = "models/dn_dab_deformable_detr/dab_deformable_detr.py:DABDeformableDETR"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("Detector", "DABDETR"), DEFORMABLE: ("Detector", "DABDeformableDETR")}


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments: a whole detector where they name a backbone, else the network over maps.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    if entry not in CHECKPOINTS:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(map(repr, CHECKPOINTS))}")
    groups = kwargs.get("dn_scalar", kwargs.get("scalar"))
    make = dense_config if entry == NETWORK else deformable_config
    spec = make(entry, kwargs, 0 if groups is None else groups)
    network = spec.get("network", spec)
    for own, theirs in (("dn_label_noise_scale", "label_noise_scale"), ("dn_box_noise_scale", "box_noise_scale")):
        if theirs in kwargs:
            network[own] = kwargs[theirs]
    return spec
