"""Importer of the authors' GLSim checkpoints (https://github.com/arkel23/GLSim, no licence)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.registry import did_you_mean
from zoo.weights.importers._official import KeyMap, refuse

NETWORK = "glsim/model_utils/glsim.py:ViTGLSim(ViTConfig(**kwargs))"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("GLSim",)}

#: arguments of the authors' ViTConfig with the values of their base configuration; None takes these
_DEFAULTS: dict[str, Any] = dict(
    image_size=224,
    patch_size=(16, 16),
    load_fc_layer=True,
    classifier="cls",
    num_classes=1000,
    num_channels=3,
    anchor_size=None,
    num_anchors=None,
    dynamic_anchor=False,
    dynamic_top=2,
    sim_metric="cos",
    anchor_random=False,
    anchor_class_token=False,
    anchor_conv_stride=None,
    anchor_resize_size=False,
    pos_embedding_type="learned",
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    num_hidden_layers=12,
    encoder_norm=True,
    reducer=None,
    aggregator=False,
    aggregator_num_hidden_layers=1,
    aggregator_norm=False,
    representation_size=768,
    attention_probs_dropout_prob=0.0,
    hidden_dropout_prob=0.1,
    sd=0.0,
    layer_norm_eps=1e-12,
    hidden_act="gelu",
)
#: further arguments, which do nothing in this network
_IDLE = [
    "debugging",
    "test_flip",
    "shared_patchifier",
    "classifier_aux",
    "head_norm",
    "head_act",
    "head_dropout_all",
    "head_dropout_prob",
    "anchor_pool_avg",
    "anchor_pool_stride",
    "anchor_conv_stem",
    "url",
    "print_attr",
]
_WIDTHS = {
    "t": dict(hidden_size=192, intermediate_size=768, num_attention_heads=3, representation_size=192),
    "s": dict(hidden_size=384, intermediate_size=1536, num_attention_heads=6, representation_size=384),
    "b": {},
    "l": dict(
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_hidden_layers=24,
        representation_size=1024,
    ),
    "h": dict(
        hidden_size=1280,
        intermediate_size=5120,
        num_attention_heads=16,
        num_hidden_layers=32,
        representation_size=1280,
    ),
}
#: the authors' names: width and side of a patch
_MODELS = [f"vit_{w}{n}" for w, sides in dict(t=(4, 8, 16, 32), s=(8, 16, 32), b=(8, 16, 32)).items() for n in sides]
_MODELS += ["vit_l16", "vit_l32", "vit_h14"]

_BLOCK = [
    ("norm1.{p}", "norm1.{p}"),
    ("norm2.{p}", "norm2.{p}"),
    ("attn.qkv.{p}", "attn.qkv.{p}"),  # the authors' proj_q, proj_k, proj_v, joined before
    ("proj.{p}", "attn.proj.{p}"),
    ("pwff.fc1.{p}", "mlp.fc1.{p}"),
    ("pwff.fc2.{p}", "mlp.fc2.{p}"),
]
_MAP = KeyMap(
    [
        ("patch_embedding.{p}", "patch_embed.{p}"),
        ("class_token", "cls_token"),
        ("anchor_class_token", "spare_token"),
        ("positional_embedding.pos_embedding", "pos_embed.table"),
        ("encoder_norm.{p}", "norm.{p}"),
        ("reducer.{p}", "resize.{p}"),
        ("aggregator_norm.{p}", "aggregator_norm.{p}"),
        ("head.{p}", "head.{p}"),
        *((f"encoder.blocks.{{i}}.{a}", f"blocks.{{i}}.{b}") for a, b in _BLOCK),
        *((f"aggregator.blocks.{{i}}.{a}", f"aggregator.{{i}}.{b}") for a, b in _BLOCK),
    ]
)


def _arguments(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    name = kwargs.get("model_name") or "vit_b16"
    if name not in _MODELS:
        raise refuse(entry, "model_name", name, ", ".join(_MODELS))
    size = int(name[5:])
    a = {**_DEFAULTS, **_WIDTHS[name[4]], "patch_size": (size, size)}
    for key, value in kwargs.items():
        if key != "model_name" and key not in a and key not in _IDLE:
            raise TypeError(f"{entry} has no argument {key!r}{did_you_mean(key, [*a, *_IDLE])}")
        if value is not None and key in a:
            a[key] = value
    return a


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the arguments of the authors' ``ViTConfig``.

    ``model_name`` gives defaults, and None takes them. Without effect in this network, and so here: the arguments of
    other classifiers' heads, of stems and pools of anchors, ``debugging``, ``test_flip``, ``shared_patchifier``,
    ``url`` and ``print_attr``.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' configuration does not have.
        ValueError: a value that is not supported.
    """
    if entry != NETWORK:
        raise LookupError(f"glsim: no entry {entry!r}")
    a = _arguments(entry, kwargs)
    patch = [a["patch_size"]] * 2 if isinstance(a["patch_size"], int) else list(a["patch_size"])
    if not isinstance(a["image_size"], int):
        raise refuse(entry, "image_size", a["image_size"], "a number of pixels")
    if len(set(patch)) != 1:
        raise refuse(entry, "patch_size", a["patch_size"], "a number, or two equal ones")
    if a["classifier"] not in ("cls", "avg_cls", "max_cls") or not a["load_fc_layer"] or a["num_classes"] < 1:
        accepted_text = "'cls', 'avg_cls' and 'max_cls', with load_fc_layer and classes"
        raise refuse(entry, "classifier", a["classifier"], accepted_text)
    if a["reducer"] not in (None, False, "cls"):
        raise refuse(entry, "reducer", a["reducer"], "None and 'cls'")
    accepted = dict(
        anchor_random=False,
        anchor_conv_stride=None,
        attention_probs_dropout_prob=0,
        hidden_act="gelu",
    )
    for name, value in accepted.items():
        if a[name] != value:
            raise refuse(entry, name, a[name], repr(value))
    if a["anchor_resize_size"] not in (False, a["image_size"]):
        raise refuse(entry, "anchor_resize_size", a["anchor_resize_size"], "the image size")
    crops = bool(a["dynamic_anchor"] or a["anchor_size"])
    if crops and not a["dynamic_anchor"] and a["num_anchors"] != 1:
        raise refuse(entry, "num_anchors", a["num_anchors"], "1 with anchor_size")
    if a["sim_metric"] not in ("cos", "l1", "l2"):
        raise refuse(entry, "sim_metric", a["sim_metric"], "'cos', 'l1' and 'l2'")
    return dict(
        type="zoo.backbones.glsim.GLSim",
        img_size=a["image_size"],
        patch_size=patch[0],
        in_chans=a["num_channels"],
        num_classes=a["num_classes"],
        embed_dim=a["hidden_size"],
        depth=a["num_hidden_layers"],
        num_heads=a["num_attention_heads"],
        mlp_dim=a["intermediate_size"],
        crops=crops,
        dynamic_top=a["dynamic_top"],
        sim_metric=a["sim_metric"],
        reducer=a["reducer"] == "cls",
        representation_size=a["representation_size"] if a["reducer"] == "cls" else None,
        aggregator=a["aggregator_num_hidden_layers"] if a["aggregator"] else 0,
        aggregator_norm=bool(a["aggregator"] and a["aggregator_norm"]),
        classifier=a["classifier"],
        positions=a["pos_embedding_type"] == "learned",
        encoder_norm=bool(a["encoder_norm"]),
        spare_token=bool(crops and a["anchor_class_token"]),
        norm_eps=a["layer_norm_eps"],
        drop_rate=a["hidden_dropout_prob"],
        drop_path_rate=a["sd"],
        drop_remainder=True,
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; projections to queries, keys and values are joined.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not, or one of three projections without the others.
        ValueError: the classifier's second name has other values than its first.
    """
    if entry != NETWORK:
        raise LookupError(f"glsim: no entry {entry!r}")
    state = dict(state_dict)
    for name in ("weight", "bias"):  # mean and maximum of logits register the classifier a second time
        again = state.pop(f"head_reducer.0.{name}", None)
        if again is not None and not torch.equal(again, state.get(f"head.{name}", again + 1)):
            raise ValueError(f"head_reducer.0.{name} differs from head.{name}, which is the same layer")
    for key in [k for k in state if ".attn.proj_q." in k]:
        parts = [key.replace("proj_q", f"proj_{x}") for x in "qkv"]
        missing = [k for k in parts if k not in state]
        if missing:
            raise KeyError(f"{key!r} is in the state dict, {missing[0]!r} is not")
        state[key.replace("proj_q", "qkv")] = torch.cat([state.pop(k) for k in parts])
    return _MAP.convert(state)


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict` (without a second name of the classifier)."""
    if entry != NETWORK:
        raise LookupError(f"glsim: no entry {entry!r}")
    state = _MAP.revert(state_dict)
    for key in [k for k in state if ".attn.qkv." in k]:
        for x, part in zip("qkv", state.pop(key).chunk(3)):
            state[key.replace("qkv", f"proj_{x}")] = part
    return state
