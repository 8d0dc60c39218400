"""Importer of Swin backbones: Microsoft's (https://github.com/SwinTransformer, MIT) and mmdet's (Apache-2.0).

The files are those of dense tasks, and those of classification, which detectors start from: what stands between the
last map and the classes keeps its names, as no dense backbone has a place for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers import _swin

MICROSOFT = "models/swin_transformer.py:SwinTransformer"
MMDET = "mmdet.models.backbones.swin:SwinTransformer"

_NAMES = {MICROSOFT: _swin.MICROSOFT, MMDET: _swin.MMDET}
#: our classes that an entry's checkpoints are for
CHECKPOINTS = {MICROSOFT: ("Swin",), MMDET: ("Swin",)}
#: the last norm and the classifier
_LAST = ("norm.weight", "norm.bias", "head.weight", "head.bias")


def _naming(entry: str) -> str:
    if entry not in _NAMES:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(map(repr, _NAMES))}")
    return _NAMES[entry]


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the arguments of the authors' backbone of dense tasks.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    return _swin.swin_config(entry, kwargs, _naming(entry))


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; indices of relative positions and masks are dropped.

    Raises:
        LookupError: an unknown entry.
        KeyError: an unknown key.
    """
    last = {k: v for k, v in state.items() if k in _LAST}
    return {**_swin.own_swin({k: v for k, v in state.items() if k not in last}, _naming(entry)), **last}


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors', without indices and masks.

    Raises:
        LookupError: an unknown entry.
        KeyError: an unknown key.
    """
    last = {k: v for k, v in state.items() if k in _LAST}
    return {**_swin.official_swin({k: v for k, v in state.items() if k not in last}, _naming(entry)), **last}
