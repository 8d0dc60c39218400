"""Importer of timm's MambaOut checkpoints (``timm.models.mambaout``, Apache-2.0), such as ``mambaout_tiny.in1k``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.weights.importers._official import KeyMap, official_arguments, refuse

_RW: dict[str, Any] = dict(stem_mid_norm=False, downsample="conv_nf", ls_init_value=1e-6, head_fn="norm_mlp")
_BASE = (128, 256, 512, 768)

#: timm's models and what they set; all are built of one class
MODELS: dict[str, dict[str, Any]] = {
    "mambaout_femto": dict(depths=(3, 3, 9, 3), dims=(48, 96, 192, 288)),
    "mambaout_kobe": dict(depths=(3, 3, 15, 3), dims=(48, 96, 192, 288)),
    "mambaout_tiny": dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 576)),
    "mambaout_small": dict(depths=(3, 4, 27, 3), dims=(96, 192, 384, 576)),
    "mambaout_base": dict(depths=(3, 4, 27, 3), dims=_BASE),
    "mambaout_small_rw": dict(_RW, depths=(3, 4, 27, 3), dims=(96, 192, 384, 576)),
    "mambaout_base_short_rw": dict(_RW, depths=(3, 3, 25, 3), dims=_BASE, expansion_ratio=3.0, conv_ratio=1.25),
    "mambaout_base_tall_rw": dict(_RW, depths=(3, 4, 30, 3), dims=_BASE, expansion_ratio=2.5, conv_ratio=1.25),
    "mambaout_base_wide_rw": dict(
        _RW, depths=(3, 4, 27, 3), dims=_BASE, expansion_ratio=3.0, conv_ratio=1.5, act_layer="silu"
    ),
    "mambaout_base_plus_rw": dict(
        _RW, depths=(3, 4, 30, 3), dims=_BASE, expansion_ratio=3.0, conv_ratio=1.5, act_layer="silu"
    ),
}
ENTRIES = tuple(MODELS)

#: our classes that an entry's checkpoints are for (the keys of all entries are the same)
CHECKPOINTS = {"mambaout_tiny": ("MambaOut",)}

_DEFAULTS: dict[str, Any] = dict(
    in_chans=3,
    num_classes=1000,
    global_pool="avg",
    depths=(3, 3, 9, 3),
    dims=(96, 192, 384, 576),
    norm_layer="layernorm",
    act_layer="gelu",
    conv_ratio=1.0,
    expansion_ratio=8 / 3,
    kernel_size=7,
    stem_mid_norm=True,
    ls_init_value=None,
    downsample="conv",
    drop_path_rate=0.0,
    drop_rate=0.0,
    head_fn="default",
)
_ACTIVATIONS = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU, "hard_swish": nn.Hardswish}
_HEADS = {"default": "mlp", "norm_mlp": "mlp_plain"}

_MAP = KeyMap(
    [
        ("stem.{p}.{p2}", "stem.{p}.{p2}"),
        # a stage's downsampling; the first stage has none
        *((f"stages.{i + 1}.downsample.{{p}}.{{p2}}", f"downsamples.{i}.{{p}}.{{p2}}") for i in range(9)),
        ("stages.{s}.blocks.{j}.norm.{p}", "stages.{s}.{j}.norm.{p}"),
        *(
            (f"stages.{{s}}.blocks.{{j}}.{m}.{{p}}", f"stages.{{s}}.{{j}}.mixer.{m}.{{p}}")
            for m in ("fc1", "conv", "fc2")
        ),
        ("stages.{s}.blocks.{j}.ls.gamma", "stages.{s}.{j}.gamma"),
        ("head.norm.{p}", "norm.{p}"),
        ("head.pre_logits.fc.{p}", "head.fc1.{p}"),
        ("head.pre_logits.norm.{p}", "head.norm.{p}"),
        ("head.fc.{p}", "head.fc2.{p}"),
    ]
)


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the name of a timm model and the arguments it is created with.

    Raises:
        LookupError: no such model of timm's.
        TypeError: an argument that timm's class does not have.
        ValueError: a value that is not supported.
    """
    if entry not in MODELS:
        raise LookupError(f"timm_mambaout: no entry {entry!r}; there are {', '.join(ENTRIES)}")
    a = official_arguments(entry, {**MODELS[entry], **kwargs}, _DEFAULTS)
    for name, accepted in (
        ("global_pool", ("avg",)),
        ("norm_layer", ("layernorm",)),
        ("act_layer", tuple(_ACTIVATIONS)),
        ("downsample", ("conv", "conv_nf")),
        ("head_fn", tuple(_HEADS)),
    ):
        if a[name] not in accepted:
            raise refuse(entry, name, a[name], ", ".join(map(repr, accepted)))
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above")
    activation = _ACTIVATIONS[a["act_layer"]]
    return dict(
        type="zoo.backbones.mambaout.MambaOut",
        act_layer=activation,
        stem_act_layer=activation,
        stem_norm=bool(a["stem_mid_norm"]),
        norm_first=a["downsample"] == "conv_nf",
        layer_scale=a["ls_init_value"],
        head=_HEADS[a["head_fn"]],
        head_dropout=a["drop_rate"],
        **{k: tuple(a[k]) for k in ("depths", "dims")},
        **{
            k: a[k]
            for k in ("in_chans", "num_classes", "conv_ratio", "expansion_ratio", "kernel_size", "drop_path_rate")
        },
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's state dict under our names; raises KeyError for a key that timm's class has not."""
    return _MAP.convert(state_dict)


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    return _MAP.revert(state_dict)
