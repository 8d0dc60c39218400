"""Importer of Hugging Face transformers' NAT and DiNAT checkpoints (Apache-2.0), such as shi-labs/dinat-mini-in1k-224.

An entry is transformers' class, its arguments those of the class's config (as in ``config.json``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers._official import KeyMap, official_arguments, refuse

DINAT = "transformers.DinatForImageClassification"
NAT = "transformers.NatForImageClassification"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {DINAT: ("NAT", "DiNAT"), NAT: ("NAT", "DiNAT")}

_PREFIX = {DINAT: "dinat", NAT: "nat"}
_DEFAULTS: dict[str, Any] = dict(
    patch_size=4,
    num_channels=3,
    embed_dim=64,
    depths=(3, 4, 6, 5),
    num_heads=(2, 4, 8, 16),
    kernel_size=7,
    mlp_ratio=3.0,
    qkv_bias=True,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    drop_path_rate=0.1,
    hidden_act="gelu",
    layer_norm_eps=1e-5,
    layer_scale_init_value=0.0,
    num_labels=None,
    id2label=None,
)
#: what a config says beside the network: of no effect on it
_ABOUT = (
    "architectures",
    "chunk_size_feed_forward",
    "dtype",
    "hidden_size",
    "initializer_range",
    "label2id",
    "model_type",
    "num_layers",
    "out_features",
    "out_indices",
    "path_norm",
    "stage_names",
    "torch_dtype",
    "transformers_version",
)
_DILATIONS = ((1, 8, 1), (1, 4, 1, 4), (1, 2, 1, 2, 1, 2), (1, 1, 1, 1, 1))
#: arguments whose other values transformers has and we have not
_ONLY = dict(
    patch_size=4,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    hidden_act="gelu",
    layer_norm_eps=1e-5,  # which transformers does not give to all of its norms
)

_BLOCK = [
    ("layernorm_before.{p}", "norm1.{p}"),
    ("layernorm_after.{p}", "norm2.{p}"),
    ("attention.self.rpb", "attn.rpb"),
    ("attention.self.qkv.{p}", "attn.qkv.{p}"),
    ("attention.output.dense.{p}", "attn.proj.{p}"),
    ("intermediate.dense.{p}", "mlp.fc1.{p}"),
    ("output.dense.{p}", "mlp.fc2.{p}"),
    ("layer_scale_parameters.0", "gamma1"),
    ("layer_scale_parameters.1", "gamma2"),
]
_TRUNK = [
    ("embeddings.patch_embeddings.projection.{k}.{p}", "patch_embed.proj.{k}.{p}"),
    ("embeddings.norm.{p}", "patch_embed.norm.{p}"),
    ("encoder.levels.{s}.downsample.reduction.{p}", "levels.{s}.downsample.reduction.{p}"),
    ("encoder.levels.{s}.downsample.norm.{p}", "levels.{s}.downsample.norm.{p}"),
    ("layernorm.{p}", "norm.{p}"),
    *((f"encoder.levels.{{s}}.layers.{{j}}.{a}", f"levels.{{s}}.blocks.{{j}}.{b}") for a, b in _BLOCK),
]
_QKV = ("query", "key", "value")
_SCALES = ".layer_scale_parameters"


def _map(entry: str) -> KeyMap:
    if entry not in _PREFIX:
        raise LookupError(f"transformers_dinat: no entry {entry!r}; there are {', '.join(_PREFIX)}")
    return KeyMap([("classifier.{p}", "head.{p}"), *((f"{_PREFIX[entry]}.{a}", b) for a, b in _TRUNK)])


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from transformers' class and the arguments of its config.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the config does not have.
        ValueError: a value that is not supported.
    """
    _map(entry)
    kwargs = {k: v for k, v in kwargs.items() if k not in _ABOUT}
    a = official_arguments(entry, kwargs, _DEFAULTS if entry == NAT else {**_DEFAULTS, "dilations": None})
    for name, only in _ONLY.items():
        if a[name] != only:
            raise refuse(entry, name, a[name], repr(only))
    labels = a["num_labels"] if a["num_labels"] is not None else len(a["id2label"] or ()) or 2
    if labels < 1:
        raise refuse(entry, "num_labels", labels, "1 and above")
    scale = a["layer_scale_init_value"]
    spec = {k: a[k] for k in ("embed_dim", "depths", "num_heads", "kernel_size", "mlp_ratio", "qkv_bias")}
    spec.update(
        in_chans=a["num_channels"],
        num_classes=labels,
        drop_path_rate=a["drop_path_rate"],
        layer_scale=scale if scale > 0 else None,
    )
    if entry == NAT:
        return dict(type="zoo.backbones.nat.NAT", **spec)
    return dict(type="zoo.backbones.dinat.DiNAT", dilations=a["dilations"] or _DILATIONS, **spec)


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict under our names: queries, keys and values in one layer, layer scales apart.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that transformers' class has not, or a query without its key and value.
    """
    keys = _map(entry)
    state: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        head, _, part = key.rpartition(".")
        layer, _, name = head.rpartition(".")
        if layer.endswith("attention.self") and name in _QKV:
            parts = [f"{layer}.{n}.{part}" for n in _QKV]
            if missing := [p for p in parts if p not in state_dict]:
                raise KeyError(f"the state dict has {key!r} but not {missing[0]!r}")
            state[f"{layer}.qkv.{part}"] = torch.cat([state_dict[p] for p in parts])
        elif key.endswith(_SCALES):
            state[f"{key}.0"], state[f"{key}.1"] = value.unbind(0)
        else:
            state[key] = value
    return keys.convert(state)


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    state: dict[str, Tensor] = {}
    reverted = _map(entry).revert(state_dict)
    for key, value in reverted.items():
        head, _, part = key.rpartition(".")
        if head.endswith("attention.self.qkv"):
            for name, tensor in zip(_QKV, value.chunk(3)):
                state[f"{head.removesuffix('qkv')}{name}.{part}"] = tensor
        elif key.endswith(f"{_SCALES}.0"):
            state[head] = torch.stack([value, reverted[f"{head}.1"]])
        elif not key.endswith(f"{_SCALES}.1"):
            state[key] = value
    return state
