"""Importer of the authors' MAViT checkpoints (https://github.com/qhfan/MALA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import KeyMap, official_arguments, refuse

NETWORK = "classfication_release.model.MALA"
LINEAR = "classfication_release.model.AddLinearAttention"
SOFTMAX = "classfication_release.model.VanillaSelfAttention"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("MAViT",)}

_NETWORK_DEFAULTS: dict[str, Any] = dict(
    in_chans=3,
    num_classes=1000,
    flagss=(("l",) * 10, ("l",) * 10, ("v",) * 40, ("v",) * 10),
    embed_dims=(96, 192, 384, 768),
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    mlp_ratios=(3, 3, 3, 3),
    drop_path_rate=0.1,
    projection=1024,
    layerscales=(False, False, False, False),
    layer_init_values=(1e-6, 1e-6, 1e-6, 1e-6),
)

_ATTENTION = [(f"{name}.{{p}}", f"{name}.{{p}}") for name in ("qkvo", "lepe", "proj")]
_BLOCK = [
    ("pos.{p}", "pos.{p}"),
    ("norm1.norm.{p}", "norm1.{p}"),
    ("norm2.norm.{p}", "norm2.{p}"),
    ("gamma_1", "gamma1"),
    ("gamma_2", "gamma2"),
    *((f"ffn.{name}.{{p}}", f"mlp.{name}.{{p}}") for name in ("fc1", "dwconv", "fc2")),
    *((f"attn.{a}", f"attn.{b}") for a, b in _ATTENTION),
]
_MAPS = {
    NETWORK: KeyMap(
        [
            # the authors' stem is conv, norm, GELU, conv, ... in one sequence
            *((f"patch_embed.proj.{3 * i}.{{p}}", f"stem.{2 * i}.conv.{{p}}") for i in range(4)),
            *((f"patch_embed.proj.{3 * i + 1}.{{p}}", f"stem.{2 * i}.norm.{{p}}") for i in range(4)),
            *((f"layers.{{s}}.blocks.{{j}}.{a}", f"stages.{{s}}.{{j}}.{b}") for a, b in _BLOCK),
            ("layers.{s}.RoPE.angle", "rotations.{s}.angles"),
            ("layers.{s}.downsample.reduction.{p}", "merges.{s}.conv.{p}"),
            ("layers.{s}.downsample.norm.{p}", "merges.{s}.norm.{p}"),
            ("proj.{p}", "head.proj.{p}"),
            ("norm.{p}", "head.norm.{p}"),
            ("head.{p}", "head.fc.{p}"),
        ]
    ),
    LINEAR: KeyMap(_ATTENTION),
    SOFTMAX: KeyMap(_ATTENTION),
}


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: a value that is not supported.
    """
    if entry in (LINEAR, SOFTMAX):
        a = official_arguments(entry, kwargs, dict(dim=None, num_heads=None))
        for name, value in a.items():
            if value is None:
                raise TypeError(f"{entry} needs the argument {name!r}")
        name = "MagnitudeAwareAttention" if entry == LINEAR else "RotatedSoftmaxAttention"
        return dict(type=f"zoo.mixers.mala.{name}", **a)
    if entry != NETWORK:
        raise LookupError(f"mala: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _NETWORK_DEFAULTS)
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above (features have no projection here)")
    flags = []
    for i, depth in enumerate(a["depths"]):
        if len(a["flagss"]) <= i or len(a["flagss"][i]) < depth:
            raise refuse(entry, "flagss", a["flagss"], f"at least {depth} letters for stage {i}")
        flags.append("".join(a["flagss"][i][:depth]))
    n = len(a["depths"])
    scales = [value if on else None for on, value in zip(a["layerscales"], a["layer_init_values"])]
    return dict(
        type="zoo.backbones.mala.MAViT",
        flags=tuple(flags),
        layer_scale=tuple(scales[:n]),
        **{k: tuple(a[k][:n]) for k in ("embed_dims", "depths", "num_heads", "mlp_ratios")},
        **{k: a[k] for k in ("in_chans", "num_classes", "drop_path_rate", "projection")},
    )


def _is_pointwise(key: str) -> bool:
    """Whether one of our weights, that of a linear layer, is at the authors' that of a 1x1 convolution."""
    return key.endswith((".qkvo.weight", ".fc1.weight", ".fc2.weight", ".fc.weight", ".attn.proj.weight")) or key in (
        "qkvo.weight",
        "proj.weight",
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; 1x1 convolutions become linear layers.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
        ValueError: a weight that is no 1x1 convolution where one is expected.
    """
    state = _map(entry).convert(state_dict)
    for key, value in state.items():
        if key.endswith((".gamma1", ".gamma2")):
            state[key] = value.flatten()
        elif _is_pointwise(key):
            if value.ndim != 4 or value.shape[2:] != (1, 1):
                raise ValueError(f"{entry}: {key} has shape {tuple(value.shape)}; a 1x1 convolution is expected")
            state[key] = value.flatten(1)
    return state


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    state = {}
    for key, value in state_dict.items():
        if key.endswith((".gamma1", ".gamma2")):
            value = value[None, :, None, None]
        state[key] = value[..., None, None] if _is_pointwise(key) else value
    return _map(entry).revert(state)


def _map(entry: str) -> KeyMap:
    if entry not in _MAPS:
        raise LookupError(f"mala: no entry {entry!r}")
    return _MAPS[entry]
