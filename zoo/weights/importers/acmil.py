"""Importer of ACMIL checkpoints (https://github.com/dazhangyu123/ACMIL, MIT)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import official_arguments, refuse
from zoo.weights.importers._prefixes import PrefixMap

GATED = "architecture/transformer.py:ACMIL_GA"
QUERY = "architecture/transformer.py:ACMIL_MHA"
PROJECTION = "architecture/network.py:DimReduction"
NETWORKS = (GATED, QUERY)

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {GATED: ("GatedACMIL",), QUERY: ("QueryACMIL",)}

_CONF: dict[str, Any] = dict(D_feat=None, D_inner=None, n_class=None, n_token=None)
_COMMON: dict[str, Any] = dict(conf=None, n_token=1, n_masked_patch=0, mask_drop=0)
#: whether masking was on when outputs were recorded: how a network is run, not how it is built
_RUN: dict[str, Any] = dict(train_masking=False)
_GATED: dict[str, Any] = dict(D=128, droprate=0)
_PROJECTION: dict[str, Any] = dict(n_channels=None, m_dim=512, numLayer_Res=0)


def head_widths(entry: str, conf: Mapping[str, Any] | None, known: Mapping[str, Any]) -> dict[str, Any]:
    """The widths of a head from the authors' settings; raises TypeError for what is missing or not theirs."""
    found = official_arguments(f"{entry} conf", conf or {}, known)
    missing = [k for k in ("D_feat", "D_inner", "n_class") if found[k] is None]
    if missing:
        raise TypeError(f"{entry} needs conf with {', '.join(missing)}")
    return found


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    from zoo.medical.acmil import GatedACMIL, QueryACMIL
    from zoo.medical.mil import FeatureProjection

    if entry == PROJECTION:
        args = official_arguments(entry, kwargs, _PROJECTION)
        if args["n_channels"] is None:
            raise TypeError(f"{entry} needs the argument 'n_channels'")
        return dict(type=FeatureProjection, in_dim=args["n_channels"], dim=args["m_dim"], residual=args["numLayer_Res"])
    if entry not in NETWORKS:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(NETWORKS)} and {PROJECTION}")
    args = official_arguments(entry, kwargs, {**_COMMON, **_RUN, **(_GATED if entry == GATED else {})})
    conf = head_widths(entry, args["conf"], _CONF)
    if conf["n_token"] not in (None, args["n_token"]):
        raise refuse(entry, "conf.n_token", conf["n_token"], f"{args['n_token']}, the argument n_token")
    common = dict(
        in_dim=conf["D_feat"],
        dim=conf["D_inner"],
        num_classes=conf["n_class"],
        branches=args["n_token"],
        masked_patches=args["n_masked_patch"],
        mask_drop=args["mask_drop"],
    )
    if entry == GATED:
        return dict(type=GatedACMIL, **common, hidden=args["D"], dropout=args["droprate"])
    return dict(type=QueryACMIL, **common)


#: the authors' gated attention and ours
GATED_SCORES = {"attention_V.0": "V", "attention_U.0": "U", "attention_weights": "weights"}
#: the authors' attention of a query and ours
QUERY_POOLING = {**{n: n for n in ("q_proj", "k_proj", "v_proj", "out_proj")}, "layer_norm": "norm"}


def _parts(entry: str, state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    if entry == PROJECTION:
        numbers = {m[1] for m in (re.match(r"(?:resBlocks|residual)\.(\d+)\.", k) for k in state) if m}
        return [("fc1", "linear"), *((f"resBlocks.{n}.block", f"residual.{n}") for n in numbers)]
    if entry not in NETWORKS:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(NETWORKS)} and {PROJECTION}")
    found = [("dimreduction.fc1", "project.linear"), ("Slide_classifier.fc", "head")]
    numbers = {m[1] for m in (re.match(r"(?:classifier|branches)\.(\d+)\.", k) for k in state) if m}
    found += [(f"classifier.{n}.fc", f"branches.{n}") for n in numbers]
    if entry == GATED:
        return found + [(f"attention.{a}", f"attention.{b}") for a, b in GATED_SCORES.items()]
    for a, b in QUERY_POOLING.items():
        found += [(f"sub_attention.{n}.{a}", f"attention.{n}.{b}") for n in numbers]
        if a not in ("q_proj", "k_proj"):
            found.append((f"bag_attention.{a}", f"bag.{b}"))
    return [*found, ("q", "queries")]


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; raises KeyError for a key that is not theirs."""
    return PrefixMap(_parts(entry, state)).convert(state)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors'; raises KeyError for a key that is not ours."""
    return PrefixMap(_parts(entry, state)).revert(state)
