"""Importer of AEM checkpoints (https://github.com/dazhangyu123/AEM, no licence file)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers import acmil
from zoo.weights.importers._official import official_arguments, refuse
from zoo.weights.importers._prefixes import PrefixMap

#: what entries say behind the network
LOSS = " + main.py div_loss"
GATED = "architecture/transformer.py:ABMIL"
QUERY = "architecture/transformer.py:MHA"
STREAMS = "architecture/dsmil.py:MILNet(FCLayer,BClassifier)"
NETWORKS = (GATED, QUERY, STREAMS)

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {GATED: ("ABMIL",), QUERY: ("QueryMIL",), STREAMS: ("DSMIL",)}

_CONF: dict[str, Any] = dict(D_feat=None, D_inner=None, n_class=None, n_masked_patch=0)
_ARGUMENTS: dict[str, dict[str, Any]] = {
    GATED: dict(arch="abmil", conf=None, D=128, droprate=0),
    QUERY: dict(arch="mha", conf=None),
    STREAMS: dict(arch="dsmil", conf=None, nonlinear=True, passing_v=False, dropout_v=0.0, confounder_path=False),
}
#: arguments of the training script that are the loss's
SCRIPT: dict[str, Any] = dict(lamda=0.1, top_k=-1)


def network_of(entry: str) -> str:
    """The network of an entry, which may name the loss behind it.

    Raises:
        LookupError: an unknown one.
    """
    name = entry.removesuffix(LOSS)
    if name not in NETWORKS:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(NETWORKS)}")
    return name


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments; those of the script's loss are passed over.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    from zoo.medical.aem import ABMIL, DSMIL, QueryMIL

    entry = network_of(entry)
    defaults = _ARGUMENTS[entry]
    args = official_arguments(entry, kwargs, {**defaults, **SCRIPT})
    if args["arch"] != defaults["arch"]:
        raise refuse(entry, "arch", args["arch"], repr(defaults["arch"]))
    conf = acmil.head_widths(entry, args["conf"], _CONF)
    if conf["n_masked_patch"]:
        raise refuse(entry, "conf.n_masked_patch", conf["n_masked_patch"], "0; masking is ACMIL's")
    common = dict(in_dim=conf["D_feat"], dim=conf["D_inner"], num_classes=conf["n_class"])
    if entry == GATED:
        return dict(type=ABMIL, **common, hidden=args["D"], dropout=args["droprate"])
    if entry == QUERY:
        return dict(type=QueryMIL, **common)
    if args["confounder_path"]:
        raise refuse(entry, "confounder_path", args["confounder_path"], "False; confounders are IBMIL's")
    return dict(type=DSMIL, **common, nonlinear=args["nonlinear"], values=args["passing_v"], dropout=args["dropout_v"])


def _map(entry: str) -> PrefixMap:
    entry = network_of(entry)
    if entry == STREAMS:
        streams = {"q": "query", "v": "values", "fcc": "head"}
        return PrefixMap([("i_classifier.fc.0", "patches"), *((f"b_classifier.{a}", b) for a, b in streams.items())])
    inside = acmil.GATED_SCORES if entry == GATED else acmil.QUERY_POOLING
    found = [(f"attention.{a}", f"attention.{b}") for a, b in inside.items()]
    found += [("dimreduction.fc1", "project.linear"), ("classifier.fc", "head")]
    return PrefixMap(found if entry == GATED else [*found, ("q", "query")])


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; raises KeyError for a key that is not theirs."""
    return _map(entry).convert(state)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors'; raises KeyError for a key that is not ours."""
    return _map(entry).revert(state)
