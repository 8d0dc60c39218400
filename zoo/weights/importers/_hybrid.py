"""What the importers of Agent Attention and InLine share: both papers changed the same four networks.

The buffers of the authors' Swin (``relative_position_index``, ``attn_mask``) follow from the windows: they are checked
and left out on the way here, and made again on the way back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.backbones.hybrid_swin import swin_mask
from zoo.layers.relative_position import relative_position_index
from zoo.weights.importers._official import KeyMap, layer_norm_eps, refuse

_COMMON: dict[str, Any] = dict(
    img_size=224, patch_size=16, in_chans=3, num_classes=1000, drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0
)
DEIT_DEFAULTS: dict[str, Any] = dict(
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
)
#: without the reductions of linear stages and their number of agents
PVT_DEFAULTS: dict[str, Any] = dict(
    _COMMON,
    embed_dims=(64, 128, 256, 512),
    num_heads=(1, 2, 4, 8),
    mlp_ratios=(4, 4, 4, 4),
    qkv_bias=False,
    qk_scale=None,
    norm_layer="LayerNorm",
    depths=(3, 4, 6, 3),
    sr_ratios=(8, 4, 2, 1),
    num_stages=4,
)
SWIN_DEFAULTS: dict[str, Any] = dict(
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
)
CSWIN_DEFAULTS: dict[str, Any] = dict(
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
)

Pairs = Sequence[tuple[str, str]]
_MLP_AND_NORMS = [(f"{part}.{{p}}", f"{part}.{{p}}") for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")]
_HEAD = [("norm.{p}", "head.norm.{p}"), ("head.{p}", "head.fc.{p}")]


def _projections(*names: str) -> list[tuple[str, str]]:
    return [(f"attn.{name}.{{p}}", f"attn.{name}.{{p}}") for name in names]


def _blocks(official: str, own: str, *keys: Pairs) -> list[tuple[str, str]]:
    return [(f"{official}.{a}", f"{own}.{b}") for pairs in keys for a, b in pairs]


def deit_map(linear: Pairs) -> KeyMap:
    """Key names of a DeiT whose linear attention has the given names within a block, besides ``qkv`` and ``proj``."""
    return KeyMap(
        [
            ("patch_embed.proj.{p}", "patch_embed.{p}"),
            ("cls_token", "cls_token"),
            ("pos_embed", "pos_embed.table"),
            *_HEAD,
            *_blocks("blocks.{s}", "blocks.{s}", _MLP_AND_NORMS, _projections("qkv", "proj"), linear),
        ]
    )


def pvt_map(linear: Pairs) -> KeyMap:
    """Key names of a PVT whose linear attention has the given names within a block, besides ``q``, ``kv``, ``proj``."""
    attention = [
        *_projections("q", "kv", "proj"),
        ("attn.sr.{p}", "attn.reduction.conv.{p}"),
        ("attn.norm.{p}", "attn.reduction.norm.{p}"),
    ]
    stages = [
        pair
        for i in range(4)
        for pair in _blocks(f"block{i + 1}.{{j}}", f"stages.{i}.{{j}}", _MLP_AND_NORMS, attention, linear)
    ]
    return KeyMap(
        [
            ("head.{p}", "head.fc.{p}"),
            *((f"patch_embed{i + 1}.proj.{{p}}", f"embeds.{i}.conv.{{p}}") for i in range(4)),
            *((f"patch_embed{i + 1}.norm.{{p}}", f"embeds.{i}.norm.{{p}}") for i in range(4)),
            *((f"pos_embed{i + 1}", f"embeds.{i}.positions.table") for i in range(4)),
            *stages,
        ]
    )


def swin_map(linear: Pairs) -> KeyMap:
    """Key names of a Swin whose linear attention has the given names within a block, besides ``qkv`` and ``proj``."""
    attention = [*_projections("qkv", "proj"), ("attn.relative_position_bias_table", "attn.rel_pos_bias.table")]
    return KeyMap(
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
            *_blocks("layers.{s}.blocks.{j}", "stages.{s}.{j}", _MLP_AND_NORMS, attention, linear),
        ]
    )


def cswin_map(linear: Pairs) -> KeyMap:
    """Key names of a CSWin whose linear attention has the given names within a block, besides ``qkv`` and ``proj``."""
    attention = [
        ("qkv.{p}", "attn.qkv.{p}"),
        ("proj.{p}", "attn.proj.{p}"),
        ("attns.{k}.get_v.{p}", "attn.branches.{k}.dwc.{p}"),
    ]
    stages = [
        pair
        for i in range(4)
        for pair in _blocks(f"stage{i + 1}.{{j}}", f"stages.{i}.{{j}}", _MLP_AND_NORMS, attention, linear)
    ]
    return KeyMap(
        [
            ("stage1_conv_embed.0.{p}", "embeds.0.conv.{p}"),
            ("stage1_conv_embed.2.{p}", "embeds.0.norm.{p}"),
            *((f"merge{i}.{part}.{{p}}", f"embeds.{i}.{part}.{{p}}") for i in (1, 2, 3) for part in ("conv", "norm")),
            *_HEAD,
            *stages,
        ]
    )


def refuse_all(entry: str, a: Mapping[str, Any], accepted: Mapping[str, Any]) -> None:
    """Refuse arguments that have another value than the accepted one."""
    for name, value in accepted.items():
        if name in a and a[name] != value and (a[name] or value):
            raise refuse(entry, name, a[name], repr(value))


def integers(values: Any) -> tuple[int, ...]:
    """Numbers that the authors write as text, too: ``"1111"``, ``["9", 16]``."""
    return tuple(int(v) for v in values)


def common_config(entry: str, a: Mapping[str, Any], features: bool) -> dict[str, Any]:
    """What all four networks take.

    Args:
        entry: for messages.
        a: the authors' arguments.
        features: whether ``num_classes=0`` gives what ours gives.

    Raises:
        ValueError: a value that is not supported.
    """
    refuse_all(entry, a, dict(drop_rate=0.0, attn_drop_rate=0.0))
    if a["num_classes"] < 1 and not features:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above (features have no head norm here)")
    image = a["img_size"]
    return dict(
        img_size=tuple(image) if isinstance(image, (list, tuple)) else image,
        drop_remainder=True,
        **{k: a[k] for k in ("in_chans", "num_classes", "drop_path_rate")},
    )


def deit_config(entry: str, a: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`~zoo.backbones.hybrid_deit.HybridDeiT`."""
    refuse_all(entry, a, dict(representation_size=None, distilled=False, weight_init=""))
    if a["embed_layer"] not in (None, "PatchEmbed"):
        raise refuse(entry, "embed_layer", a["embed_layer"], "'PatchEmbed'")
    if a["act_layer"] not in (None, "GELU"):
        raise refuse(entry, "act_layer", a["act_layer"], "'GELU'")
    names = "patch_size embed_dim depth num_heads mlp_ratio qkv_bias"
    eps = 1e-6 if a["norm_layer"] is None else layer_norm_eps(entry, "norm_layer", a["norm_layer"])
    return dict(common_config(entry, a, False), norm_eps=eps, **{k: a[k] for k in names.split()})


def pvt_config(entry: str, a: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`~zoo.backbones.hybrid_pvt.HybridPVT`, ``attn_type`` left out."""
    refuse_all(entry, a, dict(num_stages=4))
    names = "patch_size embed_dims num_heads mlp_ratios qkv_bias qk_scale depths sr_ratios"
    eps = layer_norm_eps(entry, "norm_layer", a["norm_layer"])
    return dict(common_config(entry, a, True), norm_eps=eps, **{k: a[k] for k in names.split()})


def swin_config(entry: str, a: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`~zoo.backbones.hybrid_swin.HybridSwin`."""
    refuse_all(entry, a, dict(use_checkpoint=False))
    names = "patch_size embed_dim depths num_heads window_size mlp_ratio qkv_bias qk_scale ape patch_norm attn_type"
    eps = layer_norm_eps(entry, "norm_layer", a["norm_layer"])
    return dict(common_config(entry, a, False), norm_eps=eps, **{k: a[k] for k in names.split()})


def cswin_config(entry: str, a: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`~zoo.backbones.hybrid_cswin.HybridCSWin`."""
    refuse_all(entry, a, dict(use_chk=False, hybrid_backbone=None))
    names = "embed_dim depth split_size num_heads mlp_ratio qkv_bias qk_scale attn_type"
    return dict(
        common_config(entry, a, False),
        norm_eps=layer_norm_eps(entry, "norm_layer", a["norm_layer"]),
        la_split_size=integers(a["la_split_size"].split("-")),
        **{k: a[k] for k in names.split()},
    )


def mask_grid(key: str, mask: Tensor) -> tuple[int, int]:
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


def without_buffers(
    state: Mapping[str, Tensor], record: Callable[[tuple[int, int], int], Sequence[int]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The authors' Swin state without what follows from the windows, and our buffers instead.

    Args:
        state: the authors'.
        record: map and window of a shifted block to what our block keeps of them.

    Raises:
        KeyError, ValueError: an index is missing, or a buffer is not what the authors' class makes.
    """
    rest, own = {}, {}
    for key, value in state.items():
        block, _, name = key.rpartition(".")
        if name == "attn_mask":
            _, stage, _, number = block.split(".")
            own[f"stages.{stage}.{number}.grid"] = torch.tensor(
                record(mask_grid(key, value), math.isqrt(value.shape[-1]))
            )
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


def with_buffers(
    state: Mapping[str, Tensor], window_of: Callable[[str, Tensor], int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our Swin state without its own buffers, and the authors' instead.

    Args:
        state: ours.
        window_of: name of a shifted block and what it keeps to its window, where no table of a softmax block tells it.
    """
    rest, official = {}, {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] != "stages":
            rest[key] = value
            continue
        block, official_block = ".".join(parts[:3]), f"layers.{parts[1]}.blocks.{parts[2]}"
        table = state.get(f"{block}.attn.rel_pos_bias.table")
        window = None if table is None else (math.isqrt(table.shape[0]) + 1) // 2
        if parts[3] == "grid":
            height, width = value.tolist()[:2]
            window = window_of(block, value) if window is None else window
            official[f"{official_block}.attn_mask"] = swin_mask((height, width), window, window // 2)
            continue
        if parts[-2] == "rel_pos_bias" and window is not None:
            official[f"{official_block}.attn.relative_position_index"] = relative_position_index((window, window))
        rest[key] = value
    return rest, official
