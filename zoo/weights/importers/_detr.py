"""What the importers of the DETR family share: backbone names, and heads that checkpoints name more than once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers._official import refuse

BACKBONE = "backbone.0.body."


def backbone_config(entry: str, kwargs: Mapping[str, Any], levels: int) -> dict[str, Any] | None:
    """The backbone of the authors' arguments: a ResNet by its parts ("resnet") or its name; None if maps are given."""
    from zoo.detection.resnet import DEPTHS, ResNetBackbone

    out_indices = (3,) if levels == 1 else (1, 2, 3)
    if "resnet" in kwargs:
        parts = dict(kwargs["resnet"])
        dilated = parts.pop("replace_stride_with_dilation", [False, False, False])
        if parts.get("norm", "FrozenBatchNorm2d") != "FrozenBatchNorm2d":
            raise refuse(entry, "norm", parts["norm"], "'FrozenBatchNorm2d'")
        if any(dilated[:2]):
            raise refuse(entry, "replace_stride_with_dilation", dilated, "the last stage only")
        name = {"Bottleneck": "resnet50", "BasicBlock": "resnet18"}.get(parts.get("block", "Bottleneck"))
        if name is None:
            raise refuse(entry, "block", parts["block"], "'Bottleneck' or 'BasicBlock'")
        return dict(
            type=ResNetBackbone,
            name=name,
            layers=parts.get("layers"),
            planes=tuple(parts.get("planes", (64, 128, 256, 512))),
            stem=parts.get("stem", 64),
            out_indices=out_indices,
            dilation=bool(dilated[2]),
        )
    if "backbone" in kwargs:
        if kwargs["backbone"] not in DEPTHS:
            raise refuse(entry, "backbone", kwargs["backbone"], ", ".join(DEPTHS))
        return dict(
            type=ResNetBackbone,
            name=kwargs["backbone"],
            out_indices=out_indices,
            dilation=bool(kwargs.get("dilation", False)),
        )
    return None


Rename = Callable[[str], str]


def without_copies(state: Mapping[str, Tensor], same: Callable[[str], str | None]) -> dict[str, Tensor]:
    """Drop keys that only repeat another one's tensor.

    Args:
        state: the authors' state dict.
        same: the key that a key repeats, or None.

    Raises:
        ValueError: a key and the one it repeats hold different numbers.
    """
    kept = {}
    for key, value in state.items():
        original = same(key)
        if original is None or original not in state:
            kept[key if original is None else original] = value
        elif not torch.equal(value, state[original]):
            raise ValueError(f"{key} and {original} of the state dict are one tensor in this model but hold two")
    return kept


def split_backbone(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Keys of the ResNet (ours) and the rest, from the authors' names; ``num_batches_tracked`` is dropped."""
    backbone = {
        k[len(BACKBONE) :]: v
        for k, v in state.items()
        if k.startswith(BACKBONE) and not k.endswith("num_batches_tracked") and not k[len(BACKBONE) :].startswith("fc.")
    }
    return backbone, {k: v for k, v in state.items() if not k.startswith(BACKBONE)}


def joined(backbone: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of a whole detector, or, without a backbone, of the network alone."""
    if not backbone:
        return dict(network)
    return {**{f"backbone.{k}": v for k, v in backbone.items()}, **{f"network.{k}": v for k, v in network.items()}}


def parted(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of :func:`joined`, the backbone under the authors' names."""
    if not any(k.startswith("network.") for k in state):
        return {}, dict(state)
    backbone = {BACKBONE + k[len("backbone.") :]: v for k, v in state.items() if k.startswith("backbone.")}
    return backbone, {k[len("network.") :]: v for k, v in state.items() if k.startswith("network.")}
