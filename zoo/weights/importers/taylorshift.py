"""Importer of the authors' TaylorShift models (https://github.com/tobna/TaylorShift, MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.weights.importers._official import KeyMap, layer_norm_eps, official_arguments, parse_class, refuse

VIT = "taylor_shift.py:TaylorShiftViT"
SEQUENCE = "taylor_shift.py:TaylorShiftTransformer"
ATTENTION = "taylor_shift.py:TaylorShiftAttention"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {VIT: ("TaylorShiftViT",), SEQUENCE: ("TaylorShiftTransformer",)}

_VIT_DEFAULTS: dict[str, Any] = dict(
    img_size=224,
    a=0.5,
    b=1.0,
    c=1.0,
    normalize_input=True,
    output_normalized=True,
    conv_embed=False,
    patch_size=16,
    in_chans=3,
    embed_dim=768,
    conv_norm="SyncBatchNorm",
    num_classes=1000,
    global_pool="token",
    depth=12,
    num_heads=12,
    mlp_ratio=4.0,
    qkv_bias=True,
    init_values=None,
    class_token=True,
    no_embed_class=True,
    pre_norm=False,
    fc_norm=None,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.0,
    weight_init="",
    embed_layer="PatchEmbed",
    norm_layer=None,
    act_layer=None,
    save_attention_maps=False,
)
_ATTENTION_DEFAULTS: dict[str, Any] = dict(
    dim=None,
    num_heads=8,
    head_dim=None,
    qkv_bias=True,
    proj_drop=0.0,
    attn_drop=0.0,
    a=0.5,
    b=1.0,
    c=1.0,
    normalize_input=True,
    output_normalized=False,
)
#: arguments that are called the same here and at the authors'
_SHARED = "conv_embed num_classes global_pool fc_norm no_embed_class embed_dim depth num_heads mlp_ratio qkv_bias"
_SHARED += " init_values class_token pre_norm normalize_input drop_path_rate"
_ACTIVATIONS = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU}

_ATTENTION = [("qkv.{p}", "qkv.{p}"), ("proj.{p}", "proj.{p}"), ("temperature", "temperature")]
_TRUNK = [
    ("cls_token", "trunk.cls_token"),
    ("norm_pre.{p}", "trunk.norm_pre.{p}"),
    ("norm.{p}", "head.norm.{p}"),
    ("fc_norm.{p}", "head.fc_norm.{p}"),
    ("head.{p}", "head.fc.{p}"),
    *(
        (f"blocks.{{j}}.{a}", f"trunk.blocks.{{j}}.{b}")
        for a, b in [
            *((f"{name}.{{p}}", f"{name}.{{p}}") for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")),
            ("ls1.gamma", "gamma1"),
            ("ls2.gamma", "gamma2"),
            *((f"attn.{a}", f"attn.{b}") for a, b in _ATTENTION),
        ]
    ),
]
_MAPS = {
    ATTENTION: KeyMap(_ATTENTION),
    VIT: KeyMap(
        [
            *_TRUNK,
            ("pos_embed", "pos_embed.table"),
            ("patch_embed.proj.{i}.{k}.{p}", "patch_embed.{i}.{k}.{p}"),
            ("patch_embed.proj.{p}", "patch_embed.{p}"),
        ]
    ),
    SEQUENCE: KeyMap(
        [
            *_TRUNK,
            ("pe", "positions"),
            # the authors' convolutions, norms and activations are in one sequence
            *((f"patch_embed.proj.{3 * i}.{{p}}", f"embedding.convs.{i}.{{p}}") for i in range(3)),
            *((f"patch_embed.proj.{3 * i + 1}.{{p}}", f"embedding.norms.{i}.{{p}}") for i in range(3)),
            ("patch_embed.{p}", "embedding.{p}"),
        ]
    ),
}


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Without effect in the authors' networks, and so here: ``a``, ``b`` and ``c`` (their block does not pass them on; the
    bare attention heeds them); for sequences the arguments of images and patches.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: a value that is not supported.
    """
    if entry == ATTENTION:
        return _attention(official_arguments(entry, kwargs, _ATTENTION_DEFAULTS))
    if entry == SEQUENCE:
        a = official_arguments(entry, kwargs, dict(_VIT_DEFAULTS, max_seq_len=None, input_dim=None))
        for name in ("max_seq_len", "input_dim"):
            if a[name] is None:
                raise TypeError(f"{entry} needs the argument {name!r}")
        return dict(
            _network(entry, a),
            type="zoo.backbones.taylorshift_sequence.TaylorShiftTransformer",
            max_seq_len=a["max_seq_len"],
            input_dim=a["input_dim"],
        )
    if entry != VIT:
        raise LookupError(f"taylorshift: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _VIT_DEFAULTS)
    if a["embed_layer"] not in (None, "PatchEmbed"):
        raise refuse(entry, "embed_layer", a["embed_layer"], "'PatchEmbed'")
    if a["conv_embed"] and str(a["conv_norm"]) not in ("SyncBatchNorm", "BatchNorm2d"):
        raise refuse(entry, "conv_norm", a["conv_norm"], "'SyncBatchNorm' or 'BatchNorm2d'")
    image, patch = a["img_size"], a["patch_size"]
    if isinstance(patch, (list, tuple)):
        if len(set(patch)) != 1:
            raise refuse(entry, "patch_size", patch, "a number (square patches)")
        patch = patch[0]
    return dict(
        _network(entry, a),
        type="zoo.backbones.taylorshift.TaylorShiftViT",
        img_size=tuple(image) if isinstance(image, (list, tuple)) else image,
        patch_size=patch,
        in_chans=a["in_chans"],
        drop_remainder=True,
    )


def _network(entry: str, a: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("drop_rate", "attn_drop_rate"):
        if a[name]:
            raise refuse(entry, name, a[name], "0")
    if a["weight_init"]:
        raise refuse(entry, "weight_init", a["weight_init"], "''")
    if a["save_attention_maps"]:
        raise refuse(entry, "save_attention_maps", True, "False (the authors' class fails, too)")
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above (features have no head norm here)")
    act, arguments = parse_class(str(a["act_layer"] or "GELU"))
    if act not in _ACTIVATIONS or arguments:
        raise refuse(entry, "act_layer", a["act_layer"], ", ".join(map(repr, _ACTIVATIONS)))
    return dict(
        scale_output=a["output_normalized"],
        norm_eps=1e-6 if a["norm_layer"] is None else layer_norm_eps(entry, "norm_layer", a["norm_layer"]),
        act_layer=_ACTIVATIONS[act],
        **{name: a[name] for name in _SHARED.split()},
    )


def _attention(a: Mapping[str, Any]) -> dict[str, Any]:
    if a["dim"] is None:
        raise TypeError(f"{ATTENTION} needs the argument 'dim'")
    for name in ("proj_drop", "attn_drop"):
        if a[name]:
            raise refuse(ATTENTION, name, a[name], "0")
    if a["head_dim"] not in (None, a["dim"] // a["num_heads"]):
        raise refuse(
            ATTENTION, "head_dim", a["head_dim"], "dim // num_heads (with others the authors' layer fails, too)"
        )
    return dict(
        type="zoo.mixers.taylorshift.TaylorShiftAttention",
        coefficients=(a["a"], a["b"], a["c"]),
        scale_output=a["output_normalized"],
        **{name: a[name] for name in ("dim", "num_heads", "qkv_bias", "normalize_input")},
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; the temperature becomes a vector.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
    """
    state = _map(entry).convert(state_dict)
    return {k: v.flatten() if k.endswith("temperature") else v for k, v in state.items()}


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    state = {k: v[None, :, None, None] if k.endswith("temperature") else v for k, v in state_dict.items()}
    return _map(entry).revert(state)


def _map(entry: str) -> KeyMap:
    if entry not in _MAPS:
        raise LookupError(f"taylorshift: no entry {entry!r}")
    return _MAPS[entry]
