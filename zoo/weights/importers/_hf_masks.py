"""What the importers of transformers' MaskFormer and Mask2Former share: their backbones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers import _hf
from zoo.weights.importers._hf_swin import joined_swin, split_swin, swin_config
from zoo.weights.importers._official import KeyMap, refuse

ENCODER = "model.pixel_level_module.encoder."
_RESNET = "model.backbone.model."


def as_mapping(value: Any) -> Mapping[str, Any]:
    """A config inside a config, as a mapping."""
    return value if isinstance(value, Mapping) else {} if value is None else value.to_dict()


def backbone_config(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone of a config: Swin or ResNet, with four maps.

    Raises:
        ValueError: another backbone, or fewer maps.
    """
    given = as_mapping(kwargs.get("backbone_config"))
    kind = given.get("model_type", "swin")
    if kind == "resnet":
        found = _hf.resnet_config(entry, {"backbone_config": given}, 4)
        return {**found, "out_indices": (0, 1, 2, 3), "frozen_stages": -1}
    if kind not in ("swin", "maskformer-swin"):
        raise refuse(entry, "backbone_config.model_type", kind, "'swin' and 'resnet'")
    found = swin_config(entry, given)
    if found["out_indices"] != (0, 1, 2, 3):
        raise refuse(entry, "backbone_config.out_features", given.get("out_features"), "all four stages")
    return found


def convert(state: Mapping[str, Tensor], names: KeyMap) -> dict[str, Tensor]:
    """Our names: those of the backbone (whichever it is), and ``network.`` with what ``names`` makes of the rest.

    Raises:
        KeyError: a key that the model has not.
    """
    state = {k: v for k, v in state.items() if k != "criterion.empty_weight"}  # follows from the criterion's arguments
    if any(k.startswith(f"{ENCODER}embedder.") for k in state):
        renamed = {_RESNET + k.removeprefix(ENCODER) if k.startswith(ENCODER) else k: v for k, v in state.items()}
        backbone, rest = _hf.split(renamed)
    else:
        backbone, rest = split_swin(state, ENCODER)
    return {**backbone, **{f"network.{k}": v for k, v in names.convert(rest).items()}}


def revert(state: Mapping[str, Tensor], names: KeyMap, maskformer: bool) -> dict[str, Tensor]:
    """The inverse of :func:`convert`; ``maskformer`` is MaskFormer's own Swin."""
    rest = names.revert({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    if "backbone.conv1.weight" in state:
        backbone = _hf.joined_backbone({k: v for k, v in state.items() if k.startswith("backbone.")})
        backbone = {ENCODER + k.removeprefix(_RESNET): v for k, v in backbone.items()}
    else:
        backbone = joined_swin(state, ENCODER, maskformer=maskformer)
    return {**backbone, **rest}
