"""Importer of the authors' Efficient Attention modules (https://github.com/cmsflash/efficient-attention, MIT).

There are no published checkpoints of it alone; networks that hold the module can be converted part by part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import KeyMap, official_arguments

ATTENTION = "efficient_attention.py:EfficientAttention"

#: our backbones that an entry's checkpoints are for
CHECKPOINTS: dict[str, tuple[str, ...]] = {}

_NAMES = dict(in_channels="dim", key_channels="key_dim", head_count="num_heads", value_channels="value_dim")
_MAP = KeyMap(
    [
        *((f"{name}.{{p}}", f"{name}.{{p}}") for name in ("queries", "keys", "values")),
        ("reprojection.{p}", "proj.{p}"),
    ]
)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
    """
    _check(entry)
    a = official_arguments(entry, kwargs, dict.fromkeys(_NAMES))
    for name, value in a.items():
        if value is None:
            raise TypeError(f"{entry} needs the argument {name!r}")
    arguments = {_NAMES[name]: value for name, value in a.items()}
    return dict(type="zoo.mixers.efficient.EfficientAttention", residual=True, **arguments)


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; 1x1 convolutions become linear layers.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
        ValueError: a weight that is no 1x1 convolution.
    """
    _check(entry)
    state = _MAP.convert(state_dict)
    for key, value in state.items():
        if key.endswith(".weight"):
            if value.ndim != 4 or value.shape[2:] != (1, 1):
                raise ValueError(f"{entry}: {key} has shape {tuple(value.shape)}; a 1x1 convolution is expected")
            state[key] = value.flatten(1)
    return state


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    _check(entry)
    return _MAP.revert({k: v[..., None, None] if k.endswith(".weight") else v for k, v in state_dict.items()})


def _check(entry: str) -> None:
    if entry != ATTENTION:
        raise LookupError(f"efficient_attention: no entry {entry!r}")
