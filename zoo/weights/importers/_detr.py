"""What the importers of the DETR family share: backbone names, and heads that checkpoints name more than once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers._official import refuse
from zoo.weights.importers._swin import MICROSOFT, NAMED, is_own_swin, naming, official_swin, own_swin, swin_config

BACKBONE = "backbone.0.body."
#: of a Swin, which is not torchvision's and has no body
SWIN = "backbone.0."
#: learned positions, which the authors keep beside the backbone
POSITION = "backbone.1."


def backbone_config(entry: str, kwargs: Mapping[str, Any], levels: int, swins: bool = False) -> dict[str, Any] | None:
    """The backbone of the authors' arguments; None if maps are given.

    Args:
        entry: for messages.
        kwargs: ``resnet``, a ResNet's parts, or ``backbone``, a ResNet's name (or, with ``swins``, DINO's name of a
            Swin, or a Swin's arguments). DINO's ``return_interm_indices`` say which maps it gives.
        levels: maps that the network reads.
        swins: whether the authors' code has Swins.

    Raises:
        TypeError, ValueError: what is not supported.
    """
    from zoo.detection.resnet import DEPTHS, ResNetBackbone

    out_indices = tuple(kwargs.get("return_interm_indices", (3,) if levels == 1 else (1, 2, 3)))
    if out_indices not in ((3,), (1, 2, 3), (0, 1, 2, 3)):
        raise refuse(entry, "return_interm_indices", out_indices, "[3], [1, 2, 3] and [0, 1, 2, 3]")
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
        name = kwargs["backbone"]
        if swins and isinstance(name, Mapping):
            return swin_config(entry, name)
        if swins and name in NAMED:
            if kwargs.get("dilation", False):
                raise refuse(entry, "dilation", True, "False, over a Swin")
            return swin_config(entry, {**NAMED[name], "out_indices": out_indices})
        if name not in DEPTHS:
            raise refuse(entry, "backbone", name, ", ".join([*DEPTHS, *(NAMED if swins else ())]))
        return dict(
            type=ResNetBackbone,
            name=kwargs["backbone"],
            out_indices=out_indices,
            dilation=bool(kwargs.get("dilation", False)),
        )
    return None


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
    """Keys of the ResNet or Swin (ours) and the rest, from the authors' names; ``num_batches_tracked`` is dropped.

    Raises:
        KeyError: a Swin with an unknown key.
    """
    if naming(state, SWIN) == MICROSOFT:
        inside = {k[len(SWIN) :]: v for k, v in state.items() if k.startswith(SWIN)}
        backbone = own_swin(inside, MICROSOFT)
        rest = {k: v for k, v in state.items() if not k.startswith(SWIN)}
    else:
        backbone = {
            k[len(BACKBONE) :]: v
            for k, v in state.items()
            if k.startswith(BACKBONE)
            and not k.endswith("num_batches_tracked")
            and not k[len(BACKBONE) :].startswith("fc.")
        }
        rest = {k: v for k, v in state.items() if not k.startswith(BACKBONE)}
    return backbone, {k.replace(POSITION, "position.") if k.startswith(POSITION) else k: v for k, v in rest.items()}


def joined(backbone: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of a whole detector, or, without a backbone, of the network alone."""
    if not backbone:
        return dict(network)
    return {**{f"backbone.{k}": v for k, v in backbone.items()}, **{f"network.{k}": v for k, v in network.items()}}


def separated(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of :func:`joined`: the backbone's tensors and the network's, under our names."""
    whole = any(k.startswith("network.") for k in state)
    backbone = {k[len("backbone.") :]: v for k, v in state.items() if whole and k.startswith("backbone.")}
    network = {k.removeprefix("network."): v for k, v in state.items() if not (whole and k.startswith("backbone."))}
    return backbone, network


def parted(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As :func:`separated`, backbone and positions under the authors' names."""
    backbone, network = separated(state)
    if is_own_swin(backbone):
        backbone = {SWIN + k: v for k, v in official_swin(backbone, MICROSOFT).items()}
    else:
        backbone = {BACKBONE + k: v for k, v in backbone.items()}
    return backbone, {
        k.replace("position.", POSITION) if k.startswith("position.") else k: v for k, v in network.items()
    }


#: arguments of the authors' training scripts -> the transformer's
DENSE_SCRIPT = dict(
    hidden_dim="d_model",
    nheads="nhead",
    enc_layers="num_encoder_layers",
    dec_layers="num_decoder_layers",
    dim_feedforward="dim_feedforward",
    dropout="dropout",
    pre_norm="normalize_before",
)
#: arguments of the scripts that no weight depends on
ONLY_TRAINING = frozenset(
    {
        "set_cost_class", "set_cost_bbox", "set_cost_giou", "cls_loss_coef", "bbox_loss_coef", "giou_loss_coef",
        "mask_loss_coef", "dice_loss_coef", "focal_alpha", "eos_coef", "masks",
    }
)  # fmt: skip


def from_script(kwargs: Mapping[str, Any], names: Mapping[str, str], skipped: Iterable[str]) -> dict[str, Any]:
    """Arguments of the constructors from those of a training script (which checkpoints keep as ``args``)."""
    skipped = set(skipped)
    found = {k: v for k, v in kwargs.items() if k not in names and k not in skipped}
    found["transformer"] = {own: kwargs[k] for k, own in names.items() if k in kwargs}
    found["transformer"]["return_intermediate_dec"] = True
    return found


def detector_config(
    entry: str,
    kwargs: Mapping[str, Any],
    args: Mapping[str, Any],
    network: dict[str, Any],
    levels: int,
    swins: bool = False,
) -> dict[str, Any]:
    """The spec of a whole detector where the authors' arguments name a backbone, else of the network over given maps.

    Raises:
        ValueError: neither a backbone nor the channels of the maps.
    """
    from zoo.detection.detector import Detector

    backbone = backbone_config(entry, kwargs, levels, swins)
    if backbone is not None:
        return dict(type=Detector, backbone=backbone, network=network)
    if args["backbone_channels"] is None:
        raise refuse(entry, "backbone", None, "a backbone, or backbone_channels")
    return {**network, "channels": tuple(args["backbone_channels"])}
