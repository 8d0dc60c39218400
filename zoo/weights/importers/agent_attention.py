"""Importer of the authors' Agent Attention checkpoints (https://github.com/LeapLabTHU/Agent-Attention).

The buffers of the authors' Swin (``relative_position_index``, ``attn_mask``) follow from the windows: they are checked
and left out on the way here, and made again on the way back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.backbones.hybrid_swin import swin_mask
from zoo.layers.relative_position import relative_position_index
from zoo.weights.importers._official import KeyMap, layer_norm_eps, official_arguments, refuse

DEIT = "models.agent_deit.VisionTransformer"
PVT = "models.agent_pvt.PyramidVisionTransformer"
SWIN = "models.agent_swin.AgentSwinTransformer"
CSWIN = "models.agent_cswin.CSWinTransformer"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {DEIT: ("AgentDeiT",), PVT: ("AgentPVT",), SWIN: ("AgentSwin",), CSWIN: ("AgentCSWin",)}

_COMMON: dict[str, Any] = dict(
    img_size=224, patch_size=16, in_chans=3, num_classes=1000, drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0
)
_DEFAULTS: dict[str, dict[str, Any]] = {
    DEIT: dict(
        _COMMON,
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4.0,
        qkv_bias=True,
        representation_size=None,
        distilled=False,
        embed_layer=None,
        norm_layer=None,
        act_layer=None,
        weight_init="",
        agent_num=(49, 49, 49, 49),
        agent_layer=-1,
    ),
    PVT: dict(
        _COMMON,
        embed_dims=(64, 128, 256, 512),
        num_heads=(1, 2, 4, 8),
        mlp_ratios=(4, 4, 4, 4),
        qkv_bias=False,
        qk_scale=None,
        norm_layer="LayerNorm",
        depths=(3, 4, 6, 3),
        sr_ratios=(8, 4, 2, 1),
        agent_sr_ratios="1111",
        num_stages=4,
        agent_num=(9, 16, 49, 49),
        attn_type="AAAA",
    ),
    SWIN: dict(
        _COMMON,
        patch_size=4,
        embed_dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        mlp_ratio=4.0,
        qkv_bias=True,
        qk_scale=None,
        drop_path_rate=0.1,
        norm_layer="LayerNorm",
        ape=False,
        patch_norm=True,
        use_checkpoint=False,
        agent_num=(9, 16, 49, 49),
        attn_type="BBBB",
    ),
    CSWIN: dict(
        _COMMON,
        embed_dim=96,
        depth=(2, 2, 6, 2),
        split_size=(1, 2, 7, 7),
        la_split_size="1-2-7-7",
        num_heads=(2, 4, 8, 16),
        mlp_ratio=4.0,
        qkv_bias=True,
        qk_scale=None,
        hybrid_backbone=None,
        norm_layer="LayerNorm",
        use_chk=False,
        agent_num=49,
        attn_type="AAAA",
    ),
}

_COMMON_BLOCK = [
    *((f"{part}.{{p}}", f"{part}.{{p}}") for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")),
]
_AGENT = [("attn.dwc.{p}", "attn.core.dwc.{p}"), ("attn.{p}", "attn.core.position.{p}")]
_DEIT_BLOCK = [*_COMMON_BLOCK, *((f"attn.{n}.{{p}}", f"attn.{n}.{{p}}") for n in ("qkv", "proj")), *_AGENT]
_PVT_BLOCK = [
    *_COMMON_BLOCK,
    *((f"attn.{n}.{{p}}", f"attn.{n}.{{p}}") for n in ("q", "kv", "proj")),
    ("attn.sr.{p}", "attn.reduction.conv.{p}"),
    ("attn.norm.{p}", "attn.reduction.norm.{p}"),
    *_AGENT,
]
_SWIN_BLOCK = [
    *_COMMON_BLOCK,
    *((f"attn.{n}.{{p}}", f"attn.{n}.{{p}}") for n in ("qkv", "proj")),
    ("attn.relative_position_bias_table", "attn.rel_pos_bias.table"),
    *_AGENT,
]
_CSWIN_BLOCK = [
    *_COMMON_BLOCK,
    ("qkv.{p}", "attn.qkv.{p}"),
    ("proj.{p}", "attn.proj.{p}"),
    ("attns.{k}.get_v.{p}", "attn.branches.{k}.dwc.{p}"),
    ("attns.{k}.{p}", "attn.branches.{k}.position.{p}"),
]
_HEAD = [("norm.{p}", "head.norm.{p}"), ("head.{p}", "head.fc.{p}")]


def _blocks(official: str, own: str, keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"{official}.{a}", f"{own}.{b}") for a, b in keys]


_MAPS = {
    DEIT: KeyMap(
        [
            ("patch_embed.proj.{p}", "patch_embed.{p}"),
            ("cls_token", "cls_token"),
            ("pos_embed", "pos_embed.table"),
            *_HEAD,
            *_blocks("blocks.{s}", "blocks.{s}", _DEIT_BLOCK),
        ]
    ),
    PVT: KeyMap(
        [
            ("head.{p}", "head.fc.{p}"),
            *((f"patch_embed{i + 1}.proj.{{p}}", f"embeds.{i}.conv.{{p}}") for i in range(4)),
            *((f"patch_embed{i + 1}.norm.{{p}}", f"embeds.{i}.norm.{{p}}") for i in range(4)),
            *((f"pos_embed{i + 1}", f"embeds.{i}.positions.table") for i in range(4)),
            *(pair for i in range(4) for pair in _blocks(f"block{i + 1}.{{j}}", f"stages.{i}.{{j}}", _PVT_BLOCK)),
        ]
    ),
    SWIN: KeyMap(
        [
            ("patch_embed.proj.{p}", "embeds.0.conv.{p}"),
            ("patch_embed.norm.{p}", "embeds.0.norm.{p}"),
            ("absolute_pos_embed", "embeds.0.positions.table"),
            *(
                (f"layers.{i}.downsample.{part}.{{p}}", f"embeds.{i + 1}.{part}.{{p}}")
                for i in range(8)
                for part in ("norm", "reduction")
            ),
            *_HEAD,
            *_blocks("layers.{s}.blocks.{j}", "stages.{s}.{j}", _SWIN_BLOCK),
        ]
    ),
    CSWIN: KeyMap(
        [
            ("stage1_conv_embed.0.{p}", "embeds.0.conv.{p}"),
            ("stage1_conv_embed.2.{p}", "embeds.0.norm.{p}"),
            *((f"merge{i}.{part}.{{p}}", f"embeds.{i}.{part}.{{p}}") for i in (1, 2, 3) for part in ("conv", "norm")),
            *_HEAD,
            *(pair for i in range(4) for pair in _blocks(f"stage{i + 1}.{{j}}", f"stages.{i}.{{j}}", _CSWIN_BLOCK)),
        ]
    ),
}


def _refuse_all(entry: str, a: Mapping[str, Any], accepted: Mapping[str, Any]) -> None:
    """Refuse arguments that have another value than the accepted one."""
    for name, value in accepted.items():
        if name in a and a[name] != value and (a[name] or value):
            raise refuse(entry, name, a[name], repr(value))


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _deit(a: dict[str, Any]) -> dict[str, Any]:
    _refuse_all(DEIT, a, dict(representation_size=None, distilled=False, weight_init=""))
    if a["embed_layer"] not in (None, "PatchEmbed"):
        raise refuse(DEIT, "embed_layer", a["embed_layer"], "'PatchEmbed'")
    if a["act_layer"] not in (None, "GELU"):
        raise refuse(DEIT, "act_layer", a["act_layer"], "'GELU'")
    names = "patch_size embed_dim depth num_heads mlp_ratio qkv_bias agent_layer"
    eps = 1e-6 if a["norm_layer"] is None else layer_norm_eps(DEIT, "norm_layer", a["norm_layer"])
    return dict(type="zoo.backbones.agent_deit.AgentDeiT", norm_eps=eps, **{k: a[k] for k in names.split()})


def _pvt(a: dict[str, Any]) -> dict[str, Any]:
    _refuse_all(PVT, a, dict(num_stages=4))
    names = "patch_size embed_dims num_heads mlp_ratios qkv_bias qk_scale depths sr_ratios"
    return dict(
        type="zoo.backbones.agent_pvt.AgentPVT",
        norm_eps=layer_norm_eps(PVT, "norm_layer", a["norm_layer"]),
        attn_type=a["attn_type"] or "AAAA",
        agent_sr_ratios=_integers(a["agent_sr_ratios"]),
        **{k: a[k] for k in names.split()},
    )


def _swin(a: dict[str, Any]) -> dict[str, Any]:
    _refuse_all(SWIN, a, dict(use_checkpoint=False))
    names = "patch_size embed_dim depths num_heads window_size mlp_ratio qkv_bias qk_scale ape patch_norm attn_type"
    return dict(
        type="zoo.backbones.agent_swin.AgentSwin",
        norm_eps=layer_norm_eps(SWIN, "norm_layer", a["norm_layer"]),
        **{k: a[k] for k in names.split()},
    )


def _cswin(a: dict[str, Any]) -> dict[str, Any]:
    _refuse_all(CSWIN, a, dict(use_chk=False, hybrid_backbone=None))
    names = "embed_dim depth split_size num_heads mlp_ratio qkv_bias qk_scale attn_type"
    if not isinstance(a["agent_num"], (list, tuple)):
        raise refuse(CSWIN, "agent_num", a["agent_num"], "a number for each stage")
    return dict(
        type="zoo.backbones.agent_cswin.AgentCSWin",
        norm_eps=layer_norm_eps(CSWIN, "norm_layer", a["norm_layer"]),
        la_split_size=_integers(a["la_split_size"].split("-")),
        **{k: a[k] for k in names.split()},
    )


_CONFIGS = {DEIT: _deit, PVT: _pvt, SWIN: _swin, CSWIN: _cswin}


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Without effect in the authors' constructors, and so here: ``patch_size`` of CSWin.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have.
        ValueError: a value that is not supported.
    """
    if entry not in _CONFIGS:
        raise LookupError(f"agent_attention: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _DEFAULTS[entry])
    _refuse_all(entry, a, dict(drop_rate=0.0, attn_drop_rate=0.0))
    if a["num_classes"] < 1 and entry != PVT:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above (features have no head norm here)")
    image = a["img_size"]
    return dict(
        _CONFIGS[entry](a),
        img_size=tuple(image) if isinstance(image, (list, tuple)) else image,
        agent_num=_integers(a["agent_num"]),
        drop_remainder=True,
        **{k: a[k] for k in ("in_chans", "num_classes", "drop_path_rate")},
    )


def _mask_grid(key: str, mask: Tensor) -> tuple[int, int]:
    """Height and width of the map that a mask of shifted windows was made for.

    Raises:
        ValueError: it is no such mask.
    """
    error = ValueError(f"{key}, shape {tuple(mask.shape)}, is not the mask of windows shifted by half their size")
    window = math.isqrt(mask.shape[-1]) if mask.ndim == 3 else 0
    if window < 2 or mask.shape[1:] != (window**2, window**2):
        raise error
    # of the windows row by row, the last of the first row is the first that is cut
    cut = mask.flatten(1).ne(0).any(1).nonzero()
    columns = int(cut[0]) + 1 if len(cut) else 0
    if not columns or mask.shape[0] % columns:
        raise error
    grid = (mask.shape[0] // columns * window, columns * window)
    if not torch.equal(mask.float(), swin_mask(grid, window, window // 2)):
        raise error
    return grid


def _without_buffers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The authors' Swin state without what follows from the windows, and our buffers instead."""
    rest, own = {}, {}
    for key, value in state.items():
        block, _, name = key.rpartition(".")
        if name == "attn_mask":
            _, stage, _, number = block.split(".")
            own[f"stages.{stage}.{number}.grid"] = torch.tensor(_mask_grid(key, value))
        elif name != "relative_position_index":
            rest[key] = value
            if name == "relative_position_bias_table" and f"{block}.relative_position_index" not in state:
                raise KeyError(f"missing key in the state dict: {block}.relative_position_index")
        else:
            table = state.get(f"{block}.relative_position_bias_table")
            window = 0 if table is None else (math.isqrt(table.shape[0]) + 1) // 2
            if window < 1 or not torch.equal(value, relative_position_index((window, window))):
                raise ValueError(f"{key}, shape {tuple(value.shape)}, is not the index of a square window")
    return rest, own


def _with_buffers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our Swin state without its own buffers, and the authors' instead."""
    rest, official = {}, {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] != "stages":
            rest[key] = value
            continue
        block, official_block = ".".join(parts[:3]), f"layers.{parts[1]}.blocks.{parts[2]}"
        table = state.get(f"{block}.attn.rel_pos_bias.table")
        if table is not None:
            window = (math.isqrt(table.shape[0]) + 1) // 2
        else:
            window = state[f"{block}.attn.core.position.ah_bias"].shape[3]
        if parts[3] == "grid":
            height, width = value.tolist()
            official[f"{official_block}.attn_mask"] = swin_mask((height, width), window, window // 2)
            continue
        if parts[-2] == "rel_pos_bias":
            official[f"{official_block}.attn.relative_position_index"] = relative_position_index((window, window))
        rest[key] = value
    return rest, official


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
        ValueError: a buffer that is not what the authors' class makes.
    """
    own: dict[str, Tensor] = {}
    if entry == SWIN:
        state_dict, own = _without_buffers(state_dict)
    return {**_map(entry).convert(state_dict), **own}


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    official: dict[str, Tensor] = {}
    if entry == SWIN:
        state_dict, official = _with_buffers(state_dict)
    return {**_map(entry).revert(state_dict), **official}


def _map(entry: str) -> KeyMap:
    if entry not in _MAPS:
        raise LookupError(f"agent_attention: no entry {entry!r}")
    return _MAPS[entry]
