"""Importer of Hugging Face transformers' UperNet checkpoints (Apache-2.0) over Swin and ConvNeXt, such as
openmmlab/upernet-swin-tiny and openmmlab/upernet-convnext-tiny.

An entry is transformers' class with the backbone's ``model_type``, its arguments those of the class's config (as in
``config.json``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers import _hf, _hf_convnext, _hf_swin
from zoo.weights.importers._official import KeyMap, refuse

ENTRY = "transformers.UperNetForSemanticSegmentation"
SWIN, CONVNEXT = f"{ENTRY}/swin", f"{ENTRY}/convnext"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {SWIN: ("Segmenter",), CONVNEXT: ("Segmenter",)}

_PARTS = [("conv", "conv"), ("batch_norm", "norm")]
_NAMES = KeyMap(
    [
        *((f"decode_head.psp_modules.{{n}}.1.{a}.{{p}}", f"head.pools.{{n}}.{b}.{{p}}") for a, b in _PARTS),
        *((f"decode_head.bottleneck.{a}.{{p}}", f"head.bottleneck.{b}.{{p}}") for a, b in _PARTS),
        *((f"decode_head.lateral_convs.{{n}}.{a}.{{p}}", f"head.laterals.{{n}}.{b}.{{p}}") for a, b in _PARTS),
        *((f"decode_head.fpn_convs.{{n}}.{a}.{{p}}", f"head.smooth.{{n}}.{b}.{{p}}") for a, b in _PARTS),
        *((f"decode_head.fpn_bottleneck.{a}.{{p}}", f"head.fuse.{b}.{{p}}") for a, b in _PARTS),
        ("decode_head.classifier.{p}", "head.classifier.{p}"),
        *((f"auxiliary_head.convs.{{n}}.{a}.{{p}}", f"auxiliary.0.convs.{{n}}.{b}.{{p}}") for a, b in _PARTS),
        *((f"auxiliary_head.conv_cat.{a}.{{p}}", f"auxiliary.0.join.{b}.{{p}}") for a, b in _PARTS),
        ("auxiliary_head.classifier.{p}", "auxiliary.0.classifier.{p}"),
    ]
)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for a transformers config.

    Raises:
        LookupError: an unknown entry.
        ValueError: a value that is not supported.
    """
    from zoo.segmentation.fcn import FCNHead
    from zoo.segmentation.segmenter import Segmenter
    from zoo.segmentation.upernet import UPerNetHead

    if entry not in CHECKPOINTS:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(map(repr, CHECKPOINTS))}")
    given = kwargs.get("backbone_config") or {}
    wanted = entry.rpartition("/")[2]
    if given.get("model_type", wanted) != wanted:
        raise refuse(entry, "backbone_config.model_type", given["model_type"], repr(wanted))
    backbone = (_hf_swin.swin_config if entry == SWIN else _hf_convnext.convnext_config)(entry, given)
    width = _widths(backbone)[2] if len(_widths(backbone)) > 2 else None
    auxiliary: list[dict[str, Any]] = []
    if kwargs.get("use_auxiliary_head", True):
        if width is None or kwargs.get("auxiliary_in_channels") not in (None, width):
            raise refuse(entry, "auxiliary_in_channels", kwargs.get("auxiliary_in_channels"), f"{width} or None")
        auxiliary.append(
            dict(
                type=FCNHead,
                in_index=2,
                dim=kwargs.get("auxiliary_channels", 256),
                num_convs=kwargs.get("auxiliary_num_convs", 1),
                concat_input=kwargs.get("auxiliary_concat_input", False),
                dropout=0.0,
            )
        )
    head = dict(
        type=UPerNetHead,
        dim=kwargs.get("hidden_size", 512),
        pool_scales=tuple(kwargs.get("pool_scales", (1, 2, 3, 6))),
        dropout=0.0,
    )
    return dict(
        type=Segmenter, backbone=backbone, head=head, num_classes=_hf.num_labels(kwargs), auxiliary=tuple(auxiliary)
    )


def _widths(backbone: Mapping[str, Any]) -> list[int]:
    """Channels of the maps that the backbone gives."""
    dims = backbone.get("embed_dims") or [backbone["embed_dim"] * 2**i for i in range(len(backbone["depths"]))]
    return [dims[i] for i in backbone["out_indices"]]


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict to ours; raises KeyError for a key that the model has not."""
    # A list of modules that is registered under two names is in the file twice: as layers and as their numbers.
    state = {k: v for k, v in state.items() if not re.match(r"decode_head\.psp_modules\.blocks\.", k)}
    backbone, rest = (_hf_swin.split_swin if entry == SWIN else _hf_convnext.split_convnext)(state, "backbone.")
    return {**backbone, **_NAMES.convert(rest)}


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to transformers' (version 5)."""
    rest = {k: v for k, v in state.items() if not k.startswith("backbone.")}
    joined = (_hf_swin.joined_swin if entry == SWIN else _hf_convnext.joined_convnext)(state, "backbone.")
    return {**joined, **_NAMES.revert(rest)}
