"""Importer of Guided-Context-Gating's layers (https://github.com/TejaCherukuri/Guided-Context-Gating, MIT; Keras)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import official_arguments, refuse
from zoo.weights.importers._prefixes import PrefixMap

GATING = "gcg/components/model.py:GlobalContextAttention + AttentionGate"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {GATING: ("GuidedContextGating",)}

_ARGUMENTS: dict[str, Any] = dict(channels=None, reduction_ratio=8, transform_activation="linear", filters=None)
_CONTEXT = "global_context_attention."
_GATE = "attention_gate."
_NAMES = PrefixMap(
    [
        (f"{_CONTEXT}conv_context.kernel", "context.context.weight"),
        (f"{_CONTEXT}conv_transform_bottleneck.kernel", "context.squeeze.weight"),
        (f"{_CONTEXT}conv_transform_output.kernel", "context.expand.weight"),
        (f"{_GATE}bxg", "gate.bias"),
        (f"{_GATE}bpsi", "gate.psi_bias"),
        (f"{_GATE}layer_norm.gamma", "gate.norm.weight"),
        (f"{_GATE}layer_norm.beta", "gate.norm.bias"),
        *(
            (f"{_GATE}{a}.{there}", f"gate.{b}.{here}")
            for a, b in (("conv_xl", "W_x"), ("conv_g", "W_g"), ("psi", "psi"))
            for there, here in (("kernel", "weight"), ("bias", "bias"))
        ),
    ]
)


def _known(entry: str) -> None:
    if entry != GATING:
        raise LookupError(f"entry {entry!r} is not known; accepted is {GATING!r}")


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the arguments of the authors' two layers.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructors do not have, or that is not supported.
    """
    from zoo.medical.guided_context_gating import ACTIVATIONS, GuidedContextGating

    _known(entry)
    args = official_arguments(entry, kwargs, _ARGUMENTS)
    channels = args["channels"] if args["channels"] is not None else args["filters"]
    if channels is None:
        raise TypeError(f"{entry} needs the argument 'channels' or 'filters'")
    if args["filters"] not in (None, channels):
        raise refuse(entry, "filters", args["filters"], f"{channels}, the channels of the map")
    activation = args["transform_activation"] or "linear"
    activation = "silu" if activation == "swish" else activation
    if activation not in ACTIVATIONS:
        raise refuse(entry, "transform_activation", activation, ", ".join(map(repr, ACTIVATIONS)))
    return dict(type=GuidedContextGating, dim=channels, reduction=args["reduction_ratio"], activation=activation)


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' weights to ours: kernels (height, width, in, out) become (out, in, height, width).

    Raises:
        KeyError: a key that is not theirs.
    """
    _known(entry)
    renamed = _NAMES.convert(state)
    return {k: v.permute(3, 2, 0, 1).contiguous() if v.dim() == 4 else v for k, v in renamed.items()}


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights to the authors'; raises KeyError for a key that is not ours."""
    _known(entry)
    moved = {k: v.permute(2, 3, 1, 0).contiguous() if v.dim() == 4 else v for k, v in state.items()}
    return _NAMES.revert(moved)
