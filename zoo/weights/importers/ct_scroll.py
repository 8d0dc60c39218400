"""Importer of CT-Scroll checkpoints (https://github.com/theodpzz/ct-scroll, no licence file)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import official_arguments, refuse
from zoo.weights.importers._prefixes import PrefixMap

NETWORK = "src/model.py:CT_Scroll"
_BLOCKS = {"GlobalBlock": "global", "CaudalCranialBlock": "caudal_cranial", "CranialCaudalBlock": "cranial_caudal"}
#: the authors' blocks and the direction that each attends in
BLOCKS = {f"src/attention.py:{name}": direction for name, direction in _BLOCKS.items()}

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("CTScroll",)}

_NETWORK: dict[str, Any] = dict(
    n_outputs=18,
    embed_dim=512,
    depth=1,
    window_size=(16,),
    nb_triplets=80,
    path_resnet=None,
    num_heads=8,
    image_size=(480, 480),
    backbone=None,
)
_BACKBONE: dict[str, Any] = dict(type="resnet_basic", stem=64, planes=(64, 128, 256, 512), layers=(2, 2, 2, 2))
_BLOCK: dict[str, Any] = dict(embed_dim=512, num_heads=8, nb_triplets=80, dropout=0.1)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments. Their numbers of slabs and pixels bind their code, not ours.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    from zoo.medical.ct_scroll import CTScroll, ScrollBlock

    if entry in BLOCKS:
        local = {} if BLOCKS[entry] == "global" else {"window_size": 16}
        args = official_arguments(entry, kwargs, {**_BLOCK, **local})
        return dict(
            type=ScrollBlock,
            dim=args["embed_dim"],
            num_heads=args["num_heads"],
            direction=BLOCKS[entry],
            dropout=args["dropout"],
            **({"window": args["window_size"]} if local else {}),
        )
    if entry != NETWORK:
        raise LookupError(f"entry {entry!r} is not known; accepted are {NETWORK!r} and its blocks")
    args = official_arguments(entry, kwargs, _NETWORK)
    backbone = official_arguments(f"{entry} backbone", args["backbone"] or {}, _BACKBONE)
    if backbone.pop("type") != "resnet_basic":
        raise refuse(entry, "backbone", args["backbone"], "{'type': 'resnet_basic', ...}")
    if args["path_resnet"] is not None:
        raise refuse(entry, "path_resnet", args["path_resnet"], "None; load weights with zoo.load_weights")
    if backbone["planes"][-1] != args["embed_dim"]:
        raise refuse(entry, "embed_dim", args["embed_dim"], f"{backbone['planes'][-1]}, the backbone's last width")
    windows = list(args["window_size"])
    if len(windows) < args["depth"]:
        raise refuse(entry, "window_size", windows, f"{args['depth']} numbers, one for each block")
    return dict(
        type=CTScroll,
        num_classes=args["n_outputs"],
        windows=windows[: args["depth"]],
        num_heads=args["num_heads"],
        **backbone,
    )


def _block(official: str, own: str, norms: tuple[str, str]) -> list[tuple[str, str]]:
    names = {
        "attention.in_proj_weight": "qkv.weight",
        "attention.in_proj_bias": "qkv.bias",
        "attention.out_proj": "proj",
        "mlp.mlp.gated_layers": "gated",
        norms[0]: "norm1",
        norms[1]: "norm2",
    }
    return [(official + a, own + b) for a, b in names.items()]


def _norms(direction: str) -> tuple[str, str]:
    return ("norm1", "norm2") if direction == "cranial_caudal" else ("norm_in", "norm_out")


def _parts(entry: str, state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    if entry in BLOCKS:
        return _block("", "", _norms(BLOCKS[entry]))
    if entry != NETWORK:
        raise LookupError(f"entry {entry!r} is not known; accepted are {NETWORK!r} and its blocks")
    found = [
        ("features", "features"),
        ("projection_gap", "project"),
        ("layer_norm_out", "norm"),
        ("classifier", "head"),
    ]
    for i in {int(k.split(".")[1]) for k in state if re.match(r"blocks\.\d+\.", k)}:
        for n, direction in enumerate(_BLOCKS.values()):
            found += _block(f"blocks.{i}.{direction}_block.", f"blocks.{i}.{n}.", _norms(direction))
    return found


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; raises KeyError for a key that is not theirs."""
    return PrefixMap(_parts(entry, state)).convert(state)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors'; raises KeyError for a key that is not ours."""
    return PrefixMap(_parts(entry, state)).revert(state)
