"""Importer of the authors' BiFormer checkpoints (https://github.com/rayleizhu/BiFormer, MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.layers.layer_norm_2d import LayerNorm2d
from zoo.weights.importers._official import KeyMap, official_arguments, parse_class, refuse

NETWORK = "models.biformer.BiFormer"
#: the authors' class for detection and segmentation
DENSE_NETWORK = "models_mm.biformer_mm.BiFormer_mm"
STL = "models.biformer_stl.BiFormerSTL"
STL_NCHW = "models.biformer_stl_nchw.nchwBiFormerSTL"
BRA = "ops.bra_legacy.BiLevelRoutingAttention"
BRA_NCHW = "ops.bra_nchw.nchwBRA"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {
    NETWORK: ("BiFormer",),
    DENSE_NETWORK: ("BiFormer",),
    STL: ("BiFormerSTL",),
    STL_NCHW: ("BiFormerSTL",),
}

_NETWORK_DEFAULTS: dict[str, Any] = dict(
    depth=(3, 4, 8, 3),
    in_chans=3,
    num_classes=1000,
    embed_dim=(64, 128, 320, 512),
    head_dim=64,
    qk_scale=None,
    representation_size=None,
    drop_path_rate=0.0,
    drop_rate=0.0,
    use_checkpoint_stages=(),
    n_win=7,
    kv_downsample_mode="ada_avgpool",
    kv_per_wins=(2, 2, -1, -1),
    topks=(8, 8, -1, -1),
    side_dwconv=5,
    layer_scale_init_value=-1,
    qk_dims=(None, None, None, None),
    param_routing=False,
    diff_routing=False,
    soft_routing=False,
    pre_norm=True,
    pe=None,
    pe_stages=(0,),
    before_attn_dwconv=3,
    auto_pad=False,
    kv_downsample_kernels=(4, 2, 1, 1),
    kv_downsample_ratios=(4, 2, 1, 1),
    mlp_ratios=(4, 4, 4, 4),
    param_attention="qkvo",
    mlp_dwconv=False,
)
_STL_DEFAULTS: dict[str, Any] = dict(
    in_chans=3,
    num_classes=1000,
    depth=(2, 2, 6, 2),
    embed_dim=(96, 192, 384, 768),
    head_dim=32,
    qk_scale=None,
    drop_path_rate=0.0,
    drop_rate=0.0,
    use_checkpoint_stages=(),
    mlp_ratios=(4, 4, 4, 4),
    norm_layer="LayerNorm2d",
    pre_head_norm_layer=None,
    n_wins=(7, 7, 7, 7),
    topks=(1, 4, 16, -2),
    side_dwconv=5,
)
_BRA_DEFAULTS: dict[str, Any] = dict(
    dim=None,
    num_heads=8,
    n_win=7,
    qk_dim=None,
    qk_scale=None,
    kv_per_win=4,
    kv_downsample_ratio=4,
    kv_downsample_kernel=None,
    kv_downsample_mode="identity",
    topk=4,
    param_attention="qkvo",
    param_routing=False,
    diff_routing=False,
    soft_routing=False,
    side_dwconv=3,
    auto_pad=False,
)
_BRA_NCHW_DEFAULTS: dict[str, Any] = dict(
    dim=None,
    num_heads=8,
    n_win=7,
    qk_scale=None,
    topk=4,
    side_dwconv=3,
    auto_pad=False,
    attn_backend="torch",
)

_BRA_KEYS = [
    ("qkv.qkv.{p}", "qkv_linear.{p}"),
    ("router.emb.{p}", "router.{p}"),
    ("wo.{p}", "wo.{p}"),
    ("lepe.{p}", "lepe.{p}"),
]
_FULL_KEYS = [("qkv.{p}", "qkv.{p}"), ("proj.{p}", "proj.{p}")]
_BRA_NCHW_KEYS = [
    ("qkv_linear.{p}", "qkv_linear.{p}"),
    ("output_linear.{p}", "wo.{p}"),
    ("lepe.{p}", "lepe.{p}"),
]
_CONV_KEYS = [("1.{p}", "value.{p}"), ("2.{p}", "dwconv.{p}"), ("3.{p}", "out.{p}")]
_BLOCK_KEYS = [
    ("pos_embed.{p}", "pos_embed.proj.{p}"),
    ("norm1.{p}", "norm1.{p}"),
    ("norm2.{p}", "norm2.{p}"),
    ("gamma1", "gamma1"),
    ("gamma2", "gamma2"),
    ("mlp.0.{p}", "mlp.fc1.{p}"),
    ("mlp.1.dwconv.{p}", "mlp.dwconv.{p}"),
]
_TOP_KEYS = [
    ("downsample_layers.{s}.{k}.{p}", "downsample_layers.{s}.{k}.{p}"),
    ("norm.{p}", "norm.{p}"),
    ("head.{p}", "head.{p}"),
    ("extra_norms.{s}.{p}", "extra_norms.{s}.{p}"),
]


def _network_map(block: str, fc2: str, attention: list[tuple[str, str]]) -> KeyMap:
    keys = [*_BLOCK_KEYS, (f"mlp.{fc2}.{{p}}", "mlp.fc2.{p}")]
    keys += [(f"attn.{a}", f"attn.{b}") for a, b in attention]
    return KeyMap([*_TOP_KEYS, *((f"{block}.{a}", f"stages.{{s}}.{{j}}.{b}") for a, b in keys)])


_MAPS = {
    NETWORK: _network_map("stages.{s}.{j}", "3", _BRA_KEYS + _FULL_KEYS + _CONV_KEYS),
    STL: _network_map("stages.{s}.blocks.{j}", "2", _BRA_KEYS + _FULL_KEYS + _CONV_KEYS),
    STL_NCHW: _network_map("stages.{s}.blocks.{j}", "2", _BRA_NCHW_KEYS + _FULL_KEYS),
    BRA: KeyMap(_BRA_KEYS),
    BRA_NCHW: KeyMap(_BRA_NCHW_KEYS),
}
_MAPS[DENSE_NETWORK] = _MAPS[NETWORK]


def _norm(entry: str, argument: str, value: Any) -> Any:
    """The class of a norm given as text."""
    name, arguments = parse_class(str(value))
    if name not in ("BatchNorm2d", "LayerNorm2d") or set(arguments) - {"eps"}:
        raise refuse(entry, argument, value, "'BatchNorm2d' or 'LayerNorm2d', with or without (eps=...)")
    return partial(nn.BatchNorm2d if name == "BatchNorm2d" else LayerNorm2d, **arguments) if arguments else name


def _no_checkpointing(entry: str, a: Mapping[str, Any]) -> None:
    if a["use_checkpoint_stages"]:
        raise refuse(
            entry,
            "use_checkpoint_stages",
            a["use_checkpoint_stages"],
            "none; call set_grad_checkpointing() on the model, which changes no result",
        )


def _classes(entry: str, a: Mapping[str, Any]) -> int:
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above (features have no head norm here)")
    return a["num_classes"]


def _network_config(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    dense = entry == DENSE_NETWORK
    a = official_arguments(entry, kwargs, {**_NETWORK_DEFAULTS, "pretrained": None} if dense else _NETWORK_DEFAULTS)
    _no_checkpointing(entry, a)
    if a["representation_size"]:
        raise refuse(entry, "representation_size", a["representation_size"], "None (the authors' layer fails, too)")
    if a["pe"] not in (None, "none"):
        raise refuse(entry, "pe", a["pe"], "None and 'none'")
    if a.get("pretrained") is not None:
        raise refuse(entry, "pretrained", a["pretrained"], "None; load weights with zoo.load_weights")
    if any(q is None for q in a["qk_dims"]):
        raise refuse(entry, "qk_dims", a["qk_dims"], "a number for each stage")
    return dict(
        type="zoo.backbones.biformer.BiFormer",
        num_classes=0 if dense else _classes(entry, a),
        extra_norms=dense,
        **{
            k: a[k]
            for k in [
                "depth",
                "in_chans",
                "embed_dim",
                "head_dim",
                "qk_scale",
                "drop_path_rate",
                "n_win",
                "kv_downsample_mode",
                "kv_per_wins",
                "topks",
                "side_dwconv",
                "layer_scale_init_value",
                "qk_dims",
                "param_routing",
                "diff_routing",
                "soft_routing",
                "pre_norm",
                "before_attn_dwconv",
                "auto_pad",
                "kv_downsample_ratios",
                "mlp_ratios",
                "param_attention",
                "mlp_dwconv",
            ]
        },
    )


def _stl_config(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    a = official_arguments(entry, kwargs, _STL_DEFAULTS)
    _no_checkpointing(entry, a)
    head_norm = a["pre_head_norm_layer"]
    return dict(
        type="zoo.backbones.biformer_stl.BiFormerSTL",
        num_classes=_classes(entry, a),
        routing="bra" if entry == STL else "bra_nchw",
        auto_pad=False,
        drop_remainder=True,
        norm=_norm(entry, "norm_layer", a["norm_layer"]),
        head_norm=None if head_norm is None else _norm(entry, "pre_head_norm_layer", head_norm),
        **{
            k: a[k]
            for k in [
                "in_chans",
                "depth",
                "embed_dim",
                "head_dim",
                "drop_path_rate",
                "mlp_ratios",
                "n_wins",
                "topks",
                "side_dwconv",
            ]
        },
    )


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Without effect in the authors' constructors, and so here: ``drop_rate``, ``kv_downsample_kernel(s)``; in the STL
    models ``qk_scale``; in ``nchwBRA`` ``auto_pad``.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: a value that is not supported.
    """
    if entry in (NETWORK, DENSE_NETWORK):
        return _network_config(entry, kwargs)
    if entry in (STL, STL_NCHW):
        return _stl_config(entry, kwargs)
    if entry not in (BRA, BRA_NCHW):
        raise LookupError(f"biformer: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _BRA_DEFAULTS if entry == BRA else _BRA_NCHW_DEFAULTS)
    if a["dim"] is None:
        raise TypeError(f"{entry} needs the argument 'dim'")
    if entry == BRA:
        del a["kv_downsample_kernel"]
        return dict(type="zoo.mixers.bra.BiLevelRoutingAttention", **a)
    if a.pop("attn_backend") != "torch":
        raise refuse(entry, "attn_backend", kwargs["attn_backend"], "'torch'")
    del a["auto_pad"]
    return dict(type="zoo.mixers.bra.RegionRoutingAttention", **a)


def _map(entry: str) -> KeyMap:
    if entry not in _MAPS:
        raise LookupError(f"biformer: no entry {entry!r}")
    return _MAPS[entry]


def _is_pointwise(entry: str, key: str) -> bool:
    """Whether one of our weights, that of a linear layer, is at the authors' that of a 1x1 convolution."""
    _, _, layer = key.removesuffix(".weight").rpartition(".")
    layers = ("qkv_linear", "qkv", "wo", "proj", "fc1", "fc2") if entry in (STL_NCHW, BRA_NCHW) else ("value", "out")
    return key.endswith(".weight") and layer in layers


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; 1x1 convolutions become linear layers.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
        ValueError: a weight that is no 1x1 convolution where one is expected.
    """
    state = _map(entry).convert(state_dict)
    for key, value in state.items():
        if _is_pointwise(entry, key):
            if value.ndim != 4 or value.shape[2:] != (1, 1):
                raise ValueError(f"{entry}: {key} has shape {tuple(value.shape)}; a 1x1 convolution is expected")
            state[key] = value.flatten(1)
    return state


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    state = {k: v[..., None, None] if _is_pointwise(entry, k) else v for k, v in state_dict.items()}
    return _map(entry).revert(state)
