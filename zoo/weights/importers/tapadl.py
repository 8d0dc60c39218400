"""Importer of the authors' TAP-FAN and TAP-RVT checkpoints (https://github.com/guoyongcs/TAPADL, MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers._official import KeyMap, layer_norm_eps, official_arguments, parse_class, refuse

FAN = "TAPADL_FAN/models/tap_fan.py:FAN"
RVT = "TAPADL_RVT/tap_robust_models.py:PoolingTransformer"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {FAN: ("TapFan",), RVT: ("TapRvt",)}

_FAN_DEFAULTS: dict[str, Any] = dict(
    img_size=224,
    patch_size=16,
    in_chans=3,
    num_classes=1000,
    embed_dim=768,
    depth=12,
    sharpen_attn=False,
    channel_dims=None,
    num_heads=12,
    mlp_ratio=4.0,
    qkv_bias=True,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.0,
    sr_ratio=None,
    backbone=None,
    backbone_kwargs=None,  # arguments of the ConvNeXt that is given as backbone
    use_checkpoint=False,
    act_layer=None,
    norm_layer=None,
    se_mlp=False,
    cls_attn_layers=2,
    use_pos_embed=True,
    eta=1.0,
    tokens_norm=False,
    c_head_num=None,
    hybrid_patch_size=2,
    head_init_scale=1.0,
    num_scales=1,
)
_CONVNEXT_DEFAULTS: dict[str, Any] = dict(
    in_chans=3,
    img_size=224,
    num_classes=1000,
    global_pool="avg",
    output_stride=32,
    patch_size=4,
    depths=(3, 3, 9, 3),
    dims=(96, 192, 384, 768),
    ls_init_value=1e-6,
    conv_mlp=True,
    use_head=True,
    head_init_scale=1.0,
    head_norm_first=False,
    norm_layer=None,
    drop_rate=0.0,
    drop_path_rate=0.0,
    remove_last_downsample=False,
    num_scales=None,
)
_RVT_DEFAULTS: dict[str, Any] = dict(
    image_size=None,
    patch_size=None,
    stride=None,
    base_dims=None,
    depth=None,
    heads=None,
    mlp_ratio=None,
    num_classes=1000,
    in_chans=3,
    attn_drop_rate=0.0,
    drop_rate=0.0,
    drop_path_rate=0.0,
    use_mask=False,
    masked_block=None,
    backbone=None,
    num_scales=1,
    temperature=1.0,
)

_POOL_KEYS = [
    ("dilation_predictor.proj.0.{p}", "pool.conv1.{p}"),
    ("dilation_predictor.proj.1.{p}", "pool.bn.{p}"),
    ("dilation_predictor.proj.2.{p}", "pool.conv2.{p}"),
]
_FAN_BLOCK = [
    *_POOL_KEYS,
    ("norm1.{p}", "norm1.{p}"),
    ("norm2.{p}", "norm2.{p}"),
    ("gamma1", "gamma1"),
    ("gamma2", "gamma2"),
    ("attn.q.{p}", "attn.q.{p}"),
    ("attn.kv.{p}", "attn.kv.{p}"),
    ("attn.proj.{p}", "attn.proj.{p}"),
    ("mlp.q.{p}", "mlp.q.{p}"),
    ("mlp.temperature", "mlp.temperature"),
    ("mlp.norm_v.{p}", "mlp.norm_v.{p}"),
    ("mlp.mlp_v.gamma", "mlp.mlp_v.gamma"),
    ("mlp.mlp_v.fc1.{p}", "mlp.mlp_v.fc1.{p}"),
    ("mlp.mlp_v.fc2.{p}", "mlp.mlp_v.fc2.{p}"),
    ("mlp.mlp_v.dwconv.conv1.{p}", "mlp.mlp_v.conv1.{p}"),
    ("mlp.mlp_v.dwconv.conv2.{p}", "mlp.mlp_v.conv2.{p}"),
    ("mlp.mlp_v.dwconv.bn.{p}", "mlp.mlp_v.bn.{p}"),
    ("downsample.proj.{p}", "downsample.proj.{p}"),
    ("downsample.norm.{p}", "downsample.norm.{p}"),
]
_CLASS_BLOCK = [
    ("norm1.{p}", "norm1.{p}"),
    ("norm2.{p}", "norm2.{p}"),
    ("gamma1", "gamma1"),
    ("gamma2", "gamma2"),
    ("attn.q.{p}", "attn.q.{p}"),
    ("attn.kv.{p}", "attn.kv.{p}"),  # the authors' k and v, joined before
    ("attn.proj.{p}", "attn.proj.{p}"),
    ("mlp.fc1.{p}", "mlp.fc1.{p}"),
    ("mlp.fc2.{p}", "mlp.fc2.{p}"),
]
_STEM = "patch_embed.backbone."
_CONVNEXT_BLOCK = [
    ("conv_dw.{p}", "conv_dw.{p}"),
    ("norm.{p}", "norm.{p}"),
    ("mlp.fc1.{p}", "mlp.fc1.{p}"),
    ("mlp.fc2.{p}", "mlp.fc2.{p}"),
    ("gamma", "gamma"),
]
_FAN_MAP = KeyMap(
    [
        *((f"blocks.{{i}}.{a}", f"blocks.{{i}}.{b}") for a, b in _FAN_BLOCK),
        *((f"cls_attn_blocks.{{i}}.{a}", f"cls_attn_blocks.{{i}}.{b}") for a, b in _CLASS_BLOCK),
        ("cls_token", "cls_token"),
        ("norm.{p}", "norm.{p}"),
        ("head.{p}", "head.{p}"),
        ("pos_embed.token_projection.{p}", "pos_embed.token_projection.{p}"),
        # of the convolutional embedding: layer 2n of pairs (convolution, norm) -> a flat list with GELU between
        *((f"patch_embed.proj.{2 * n}.{k}.{{p}}", f"patch_embed.{3 * n + k}.{{p}}") for n in range(4) for k in (0, 1)),
        ("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
        (_STEM + "stem.0.{p}", _STEM + "conv.{p}"),
        (_STEM + "stem.1.{p}", _STEM + "norm.{p}"),
        (_STEM + "stages.{s}.downsample.0.{p}", _STEM + "stages.{s}.norm.{p}"),
        (_STEM + "stages.{s}.downsample.1.{p}", _STEM + "stages.{s}.conv.{p}"),
        *(
            (f"{_STEM}stages.{{s}}.blocks.{{j}}.{a}", f"{_STEM}stages.{{s}}.blocks.{{j}}.{b}")
            for a, b in _CONVNEXT_BLOCK
        ),
    ]
)
_RVT_BLOCK = [
    *_POOL_KEYS,
    ("norm1.{p}", "norm1.{p}"),
    ("norm2.{p}", "norm2.{p}"),
    ("attn.att_mask", "attn.att_mask"),
    ("attn.qkv.{p}", "attn.qkv.{p}"),
    ("attn.proj.{p}", "attn.proj.{p}"),
    *((f"mlp.{m}.{{p}}", f"mlp.{m}.{{p}}") for m in ("fc1", "bn1", "dwconv", "bn2", "fc2", "bn3")),
]
_RVT_MAP = KeyMap(
    [
        *((f"transformers.{{s}}.blocks.{{j}}.{a}", f"stages.{{s}}.{{j}}.{b}") for a, b in _RVT_BLOCK),
        ("patch_embed.proj.0.{p}", "patch_embed.conv.{p}"),
        ("patch_embed.proj.1.{p}", "patch_embed.bn.{p}"),
        ("patch_embed.proj.3.{p}", "patch_embed.proj.{p}"),
        ("pools.{s}.conv.{p}", "pools.{s}.{p}"),
        ("norm.{p}", "norm.{p}"),
        ("head.{p}", "head.{p}"),
    ]
)
_MAPS = {FAN: _FAN_MAP, RVT: _RVT_MAP}


def _refuse_unless(entry: str, a: Mapping[str, Any], accepted: Mapping[str, Any]) -> None:
    """Raise for an argument whose value is not the one that is supported."""
    for name, value in accepted.items():
        if a[name] != value:
            raise refuse(entry, name, a[name], repr(value))


def _convnext_config(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    a = official_arguments(f"{entry} backbone_kwargs", kwargs, _CONVNEXT_DEFAULTS)
    accepted = dict(
        output_stride=32,
        conv_mlp=True,
        use_head=False,
        head_norm_first=False,
        norm_layer=None,
        remove_last_downsample=False,
        num_scales=None,
    )
    _refuse_unless(f"{entry} backbone_kwargs", a, accepted)
    return dict(
        in_chans=a["in_chans"],
        depths=tuple(a["depths"]),
        dims=tuple(a["dims"]),
        patch_size=a["patch_size"],
        layer_scale=a["ls_init_value"],
        drop_path_rate=a["drop_path_rate"],
    )


def _fan_config(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    a = official_arguments(entry, kwargs, _FAN_DEFAULTS)
    accepted = dict(drop_rate=0, attn_drop_rate=0, use_checkpoint=False, se_mlp=False)
    _refuse_unless(entry, a, accepted)
    if a["backbone"] is not None:
        raise refuse(entry, "backbone", a["backbone"], "None; a ConvNeXt's arguments go to backbone_kwargs")
    if a["act_layer"] is not None and parse_class(str(a["act_layer"])) != ("GELU", {}):
        raise refuse(entry, "act_layer", a["act_layer"], "None and 'GELU'")
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above (the authors' constructor needs a head)")
    if a["eta"] is None:
        raise refuse(entry, "eta", a["eta"], "a number (the authors' blocks need one)")
    sides = [a["img_size"]] if isinstance(a["img_size"], int) else list(a["img_size"])
    if sides[0] % a["patch_size"]:
        raise refuse(entry, "img_size", a["img_size"], f"multiples of patch_size={a['patch_size']}")
    eps = 1e-6 if a["norm_layer"] is None else layer_norm_eps(entry, "norm_layer", a["norm_layer"])
    hybrid = None if a["backbone_kwargs"] is None else _convnext_config(entry, a["backbone_kwargs"])
    kept = (
        "patch_size in_chans num_classes embed_dim depth channel_dims num_heads c_head_num mlp_ratio qkv_bias "
        "drop_path_rate num_scales hybrid_patch_size cls_attn_layers use_pos_embed eta tokens_norm head_init_scale"
    )
    return dict(
        type="zoo.backbones.tap_fan.TapFan",
        hybrid=hybrid,
        norm_eps=eps,
        drop_remainder=True,
        **{k: a[k] for k in kept.split()},
    )


def _rvt_config(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    a = official_arguments(entry, kwargs, _RVT_DEFAULTS)
    for name in ("image_size", "patch_size", "stride", "base_dims", "depth", "heads", "mlp_ratio"):
        if a[name] is None:
            raise TypeError(f"{entry} needs the argument {name!r}")
    _refuse_unless(entry, a, dict(attn_drop_rate=0, drop_rate=0, backbone=None))
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above (features have no norm here)")
    if 1768 in [d * h for d, h in zip(a["base_dims"], a["heads"])]:
        raise refuse(entry, "base_dims", a["base_dims"], "widths other than 1768, whose MLP is of another kind")
    kept = (
        "base_dims depth heads mlp_ratio num_classes in_chans patch_size drop_path_rate use_mask masked_block "
        "num_scales"
    )
    return dict(type="zoo.backbones.tap_rvt.TapRvt", drop_remainder=True, **{k: a[k] for k in kept.split()})


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Without effect in the authors' constructors, and so here: FAN's ``sharpen_attn`` and ``sr_ratio``, RVT's
    ``image_size``, ``stride`` and ``temperature``, and what a ConvNeXt does with a head.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: a value that is not supported.
    """
    if entry == FAN:
        return _fan_config(entry, kwargs)
    if entry == RVT:
        return _rvt_config(entry, kwargs)
    raise LookupError(f"tapadl: no entry {entry!r}")


def _map(entry: str) -> KeyMap:
    if entry not in _MAPS:
        raise LookupError(f"tapadl: no entry {entry!r}")
    return _MAPS[entry]


def _is_pointwise(key: str) -> bool:
    """Whether one of our weights, that of a linear layer, is at FAN's that of a 1x1 convolution."""
    convnext = key.startswith(_STEM) and ".mlp.fc" in key
    return key.endswith(".weight") and (convnext or key.startswith("pos_embed."))


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; keys and values of class attention are joined.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
        ValueError: a weight that is no 1x1 convolution where one is expected.
    """
    keys = _map(entry)
    state = dict(state_dict)
    for name in [k for k in state if entry == FAN and k.startswith("cls_attn_blocks.") and ".attn.k." in k]:
        other = name.replace(".attn.k.", ".attn.v.")
        if other not in state:
            raise KeyError(f"{name!r} is in the state dict, {other!r} is not")
        state[name.replace(".attn.k.", ".attn.kv.")] = torch.cat([state.pop(name), state.pop(other)])
    state = keys.convert(state)
    for key, value in state.items():
        if entry == FAN and _is_pointwise(key):
            if value.ndim != 4 or value.shape[2:] != (1, 1):
                raise ValueError(f"{entry}: {key} has shape {tuple(value.shape)}; a 1x1 convolution is expected")
            state[key] = value.flatten(1)
    return state


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    keys = _map(entry)
    if entry == RVT:
        return keys.revert(state_dict)
    state = keys.revert({k: v[..., None, None] if _is_pointwise(k) else v for k, v in state_dict.items()})
    for name in [k for k in state if k.startswith("cls_attn_blocks.") and ".attn.kv." in k]:
        k, v = state.pop(name).chunk(2)
        state[name.replace(".kv.", ".k.")], state[name.replace(".kv.", ".v.")] = k, v
    return state
