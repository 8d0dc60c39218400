"""Importer of the authors' MambaOut checkpoints (https://github.com/yuweihao/MambaOut, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.weights.importers._official import KeyMap, layer_norm_eps, official_arguments, parse_class, refuse

NETWORK = "models/mambaout.py:MambaOut"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("MambaOut",)}

_DOWNSAMPLE_LAYERS = ("StemLayer", "DownsampleLayer", "DownsampleLayer", "DownsampleLayer")
_DEFAULTS: dict[str, Any] = dict(
    in_chans=3,
    num_classes=1000,
    depths=(3, 3, 9, 3),
    dims=(96, 192, 384, 576),
    downsample_layers=_DOWNSAMPLE_LAYERS,
    norm_layer="LayerNorm(eps=1e-6)",
    act_layer="GELU",
    conv_ratio=1.0,
    kernel_size=7,
    drop_path_rate=0.0,
    output_norm="LayerNorm(eps=1e-6)",
    head_fn="MlpHead",
    head_dropout=0.0,
)
_ACTIVATIONS = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU, "Hardswish": nn.Hardswish}
_HEADS = {"MlpHead": "mlp", "Linear": "linear"}

_MAP = KeyMap(
    [
        ("downsample_layers.0.{p}.{p2}", "stem.{p}.{p2}"),
        # the first of the authors' downsampling layers is the stem
        *((f"downsample_layers.{i + 1}.{{p}}.{{p2}}", f"downsamples.{i}.{{p}}.{{p2}}") for i in range(3)),
        ("stages.{s}.{j}.norm.{p}", "stages.{s}.{j}.norm.{p}"),
        *((f"stages.{{s}}.{{j}}.{m}.{{p}}", f"stages.{{s}}.{{j}}.mixer.{m}.{{p}}") for m in ("fc1", "conv", "fc2")),
        ("norm.{p}", "norm.{p}"),
        ("head.{p}.{p2}", "head.{p}.{p2}"),
    ]
)
_LINEAR_HEAD = {f"head.{p}": f"head.fc2.{p}" for p in ("weight", "bias")}


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    The authors' class takes and drops arguments that it does not know; here they are errors.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not name.
        ValueError: a value that is not supported.
    """
    if entry != NETWORK:
        raise LookupError(f"mambaout: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _DEFAULTS)
    depths, dims = (tuple(v) if isinstance(v, (list, tuple)) else (v,) for v in (a["depths"], a["dims"]))
    layers = a["downsample_layers"]
    layers = tuple(layers) if isinstance(layers, (list, tuple)) else (layers,) * len(depths)
    layers = tuple(str(x).rpartition(".")[2] for x in layers)
    if layers[: len(depths)] != _DOWNSAMPLE_LAYERS[: len(depths)]:
        raise refuse(entry, "downsample_layers", a["downsample_layers"], "a StemLayer, then DownsampleLayers")
    if not 1 <= len(depths) <= len(_DOWNSAMPLE_LAYERS) or len(dims) != len(depths):
        raise refuse(entry, "depths, dims", (a["depths"], a["dims"]), "as many depths as dims, one to four")
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above")
    activation, arguments = parse_class(str(a["act_layer"]))
    if activation not in _ACTIVATIONS or arguments:
        raise refuse(entry, "act_layer", a["act_layer"], ", ".join(_ACTIVATIONS))
    head = parse_class(str(a["head_fn"]))
    if head[0] not in _HEADS or head[1]:
        raise refuse(entry, "head_fn", a["head_fn"], ", ".join(_HEADS))
    if head[0] == "Linear" and a["head_dropout"] > 0:
        raise refuse(entry, "head_dropout", a["head_dropout"], "0 with head_fn='Linear', which takes no dropout")
    return dict(
        type="zoo.backbones.mambaout.MambaOut",
        depths=depths,
        dims=dims,
        act_layer=_ACTIVATIONS[activation],
        norm_eps=layer_norm_eps(entry, "norm_layer", a["norm_layer"]),
        head_norm_eps=layer_norm_eps(entry, "output_norm", a["output_norm"]),
        head=_HEADS[head[0]],
        **{k: a[k] for k in ("in_chans", "num_classes", "conv_ratio", "kernel_size", "drop_path_rate", "head_dropout")},
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
    """
    if entry != NETWORK:
        raise LookupError(f"mambaout: no entry {entry!r}")
    linear = {_LINEAR_HEAD[k]: v for k, v in state_dict.items() if k in _LINEAR_HEAD}
    return {**_MAP.convert({k: v for k, v in state_dict.items() if k not in _LINEAR_HEAD}), **linear}


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    if entry != NETWORK:
        raise LookupError(f"mambaout: no entry {entry!r}")
    official = _MAP.revert(state_dict)
    if "head.fc1.weight" in official:
        return official
    back = {"head.fc2.weight": "head.weight", "head.fc2.bias": "head.bias"}
    return {back.get(k, k): v for k, v in official.items()}
