"""Importer of Attention-Gated-Networks (https://github.com/ozan-oktay/Attention-Gated-Networks, MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import official_arguments, refuse
from zoo.weights.importers._prefixes import PrefixMap

_NETWORKS = "models/networks/"
_GATES = "models/layers/grid_attention_layer.py:"
DSV = f"{_NETWORKS}unet_CT_dsv_3D.py:unet_CT_dsv_3D"
SINGLE = f"{_NETWORKS}unet_CT_single_att_dsv_3D.py:unet_CT_single_att_dsv_3D"
MULTI = f"{_NETWORKS}unet_CT_multi_att_dsv_3D.py:unet_CT_multi_att_dsv_3D"
GRID = f"{_NETWORKS}unet_grid_attention_3D.py:unet_grid_attention_3D"
SONONET = f"{_NETWORKS}sononet_grid_attention.py:sononet_grid_attention"
NETWORKS = (DSV, SINGLE, MULTI, GRID, SONONET)
GATES = {f"{_GATES}GridAttentionBlock{n}D": n for n in (2, 3)}
SCORE_GATES = {f"{_GATES}GridAttentionBlock{n}D_TORR": n for n in (2, 3)}
_NUMBER_OF_GATES = {DSV: 0, SINGLE: 1, MULTI: 2}

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {
    **dict.fromkeys(_NUMBER_OF_GATES, ("AttentionUNet",)),
    GRID: ("GridAttentionUNet",),
    SONONET: ("AGSononet",),
}

_MODES = {"concatenation": "sigmoid", "concatenation_debug": "softplus", "concatenation_residual": "softmax"}
_SCORES = {f"concatenation_{m}": m for m in ("softmax", "mean", "mean_flow", "range_normalise", "sigmoid")}
_UNET: dict[str, Any] = dict(feature_scale=4, n_classes=21, is_deconv=True, in_channels=3, is_batchnorm=True)
_ATTENTION: dict[str, Any] = dict(nonlocal_mode="concatenation", attention_dsample=(2, 2, 2))
_SONONET: dict[str, Any] = dict(
    feature_scale=4,
    n_classes=21,
    in_channels=3,
    is_batchnorm=True,
    n_convs=None,
    nonlocal_mode="concatenation",
    aggregation_mode="concat",
)
_GATE: dict[str, Any] = dict(in_channels=None, gating_channels=None, inter_channels=None, mode="concatenation")
_PARTS = dict(use_W=True, use_phi=True, use_theta=True, use_psi=True, nonlinearity1="relu")


def _mode(entry: str, name: str, value: str, known: Mapping[str, str]) -> str:
    if value not in known:
        raise refuse(entry, name, value, ", ".join(map(repr, known)))
    return known[value]


def _steps(value: Any) -> Any:
    return value if isinstance(value, int) else tuple(value)


def _gate(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    from zoo.medical.grid_attention import GridGate, ScoreGate

    scored = entry in SCORE_GATES
    dims = SCORE_GATES[entry] if scored else GATES[entry]
    # Their gate of images has a default of three strides, which its convolution does not take.
    defaults = {**_GATE, "sub_sample_factor": 1 if scored else 2}
    if scored:
        defaults |= {"bn_layer": True, **(_PARTS if dims == 2 else {})}
    args = official_arguments(entry, kwargs, defaults)
    for name in ("in_channels", "gating_channels"):
        if args[name] is None:
            raise TypeError(f"{entry} needs the argument {name!r}")
    common = dict(
        in_chans=args["in_channels"],
        gate_chans=args["gating_channels"],
        inter_chans=args["inter_channels"],
        dims=dims,
        mode=_mode(entry, "mode", args["mode"], _SCORES if scored else _MODES),
        stride=_steps(args["sub_sample_factor"]),
    )
    if not scored:
        return dict(type=GridGate, **common)
    args = {**_PARTS, **args}
    if args["nonlinearity1"] not in ("relu", None, False, ""):
        raise refuse(entry, "nonlinearity1", args["nonlinearity1"], "'relu' or None")
    return dict(
        type=ScoreGate,
        **common,
        norm=args["bn_layer"],
        output=args["use_W"],
        theta=args["use_theta"],
        phi=args["use_phi"],
        psi=args["use_psi"],
        relu=bool(args["nonlinearity1"]),
    )


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    from zoo.medical.attention_unet import AttentionUNet, GridAttentionUNet
    from zoo.medical.sononet import AGSononet

    if entry in GATES or entry in SCORE_GATES:
        return _gate(entry, kwargs)
    if entry not in NETWORKS:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(NETWORKS)}")
    defaults = _SONONET if entry == SONONET else {**_UNET, **(_ATTENTION if entry != DSV else {})}
    args = official_arguments(entry, kwargs, defaults)
    widths = [int(n / args["feature_scale"]) for n in (64, 128, 256, 512, 1024)]
    common = dict(in_chans=args["in_channels"], num_classes=args["n_classes"], norm=args["is_batchnorm"])
    if entry == SONONET:
        return dict(
            type=AGSononet,
            **common,
            widths=widths[:4],
            mode=_mode(entry, "nonlocal_mode", args["nonlocal_mode"], _SCORES),
            aggregation=args["aggregation_mode"],
            depths=args["n_convs"] or (3, 3, 3, 2, 2),
        )
    common["widths"] = widths
    if entry != DSV:
        common["mode"] = _mode(entry, "nonlocal_mode", args["nonlocal_mode"], _MODES)
        common["stride"] = _steps(args["attention_dsample"])
    if entry == GRID:
        return dict(type=GridAttentionUNet, **common, transposed=args["is_deconv"])
    # Their deeply supervised networks take is_deconv and always interpolate.
    return dict(type=AttentionUNet, **common, gates=_NUMBER_OF_GATES[entry])


def _block(official: str, own: str) -> list[tuple[str, str]]:
    return [(f"{official}.conv{i}", f"{own}.{i - 1}") for i in range(1, 10)]


def parts(entry: str) -> list[tuple[str, str]]:
    """(the authors' module, ours) for all modules of an entry that hold weights."""
    if entry in GATES or entry in SCORE_GATES:
        return [("", "")]
    if entry not in NETWORKS:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(NETWORKS)}")
    if entry == SONONET:
        stages = [pair for i in range(1, 6) for pair in _block(f"conv{i}", f"stages.{i - 1}")]
        gates = [(f"compatibility_score{i}", f"gates.{i - 1}") for i in (1, 2)]
        heads = [(f"classifier{i}", f"classifiers.{i - 1}") for i in (1, 2, 3)]
        return [*stages, *gates, *heads, ("classifier", "classifier")]
    found = [pair for i in range(1, 5) for pair in _block(f"conv{i}", f"encoder.blocks.{i - 1}")]
    found += _block("center", "encoder.center") + [("final", "final")]
    for i in range(1, 5):
        found += _block(f"up_concat{i}.conv", f"up.{i - 1}.conv") + [(f"up_concat{i}.up", f"up.{i - 1}.up")]
    if entry != DSV:
        found.append(("gating.conv1", "gating"))
    if entry == GRID:
        return found + [(f"attentionblock{i}", f"gates.{i - 2}") for i in (2, 3, 4)]
    for i in (2, 3, 4):
        found.append((f"dsv{i}.dsv.0", f"heads.{i - 1}.0"))
        found += [
            (f"attentionblock{i}.gate_block_{n}", f"gates.{i - 2}.gates.{n - 1}")
            for n in range(1, _NUMBER_OF_GATES[entry] + 1)
        ]
        if entry != DSV:
            found.append((f"attentionblock{i}.combine_gates", f"gates.{i - 2}.combine"))
    return [*found, ("dsv1", "heads.0")]


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; raises KeyError for a key that is not theirs."""
    return PrefixMap(parts(entry)).convert(state)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors'; raises KeyError for a key that is not ours."""
    return PrefixMap(parts(entry)).revert(state)
