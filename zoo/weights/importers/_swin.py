"""Swins of dense tasks under :class:`zoo.backbones.swin.Swin`'s names: Microsoft's naming, and mmdet's.

Microsoft's (https://github.com/SwinTransformer, MIT) is that of DINO, of detectron2, thus of detrex, and of Co-DETR's
``SwinTransformerV1``. mmdet's ``SwinTransformer`` (Apache-2.0) merges patches in another order of the channels.
Transformers' names are in ``_hf_swin.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import KeyMap, official_arguments, refuse

MICROSOFT, MMDET = "SwinTransformerV1", "SwinTransformer of mmdet"
#: what follows from the size of the windows and of the map
_BUFFERS = (".relative_position_index", ".attn_mask")
_MAPS = {
    MICROSOFT: KeyMap(
        [
            ("patch_embed.proj.{p}", "embeds.0.conv.{p}"),
            ("patch_embed.norm.{p}", "embeds.0.norm.{p}"),
            ("merge.{s}.{p1}.{p}", "embeds.{s}.{p1}.{p}"),
            ("layers.{s}.blocks.{b}.norm{n}.{p}", "stages.{s}.{b}.norm{n}.{p}"),
            ("layers.{s}.blocks.{b}.attn.relative_position_bias_table", "stages.{s}.{b}.attn.rel_pos_bias.table"),
            ("layers.{s}.blocks.{b}.attn.{p1}.{p}", "stages.{s}.{b}.attn.{p1}.{p}"),
            ("layers.{s}.blocks.{b}.mlp.fc{n}.{p}", "stages.{s}.{b}.mlp.fc{n}.{p}"),
            ("norm{s}.{p}", "norms.{s}.{p}"),
        ]
    ),
    MMDET: KeyMap(
        [
            ("patch_embed.projection.{p}", "embeds.0.conv.{p}"),
            ("patch_embed.norm.{p}", "embeds.0.norm.{p}"),
            ("merge.{s}.{p1}.{p}", "embeds.{s}.{p1}.{p}"),
            ("stages.{s}.blocks.{b}.norm{n}.{p}", "stages.{s}.{b}.norm{n}.{p}"),
            (
                "stages.{s}.blocks.{b}.attn.w_msa.relative_position_bias_table",
                "stages.{s}.{b}.attn.rel_pos_bias.table",
            ),
            ("stages.{s}.blocks.{b}.attn.w_msa.{p1}.{p}", "stages.{s}.{b}.attn.{p1}.{p}"),
            ("stages.{s}.blocks.{b}.ffn.layers.0.0.{p}", "stages.{s}.{b}.mlp.fc1.{p}"),
            ("stages.{s}.blocks.{b}.ffn.layers.1.{p}", "stages.{s}.{b}.mlp.fc2.{p}"),
            ("norm{s}.{p}", "norms.{s}.{p}"),
        ]
    ),
}
_STAGES = {MICROSOFT: "layers", MMDET: "stages"}


def naming(state: Mapping[str, Tensor], prefix: str = "") -> str | None:
    """Whose names the keys below ``prefix`` are: ``MICROSOFT``, ``MMDET``, or None where they are not a Swin's."""
    for name, part in _STAGES.items():
        if any(re.match(rf"{part}\.\d+\.blocks\.", k.removeprefix(prefix)) for k in state if k.startswith(prefix)):
            return name
    return None


def is_own_swin(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys of a backbone are our Swin's."""
    return any(re.match(r"stages\.\d+\.\d+\.attn\.rel_pos_bias\.", k) for k in state)


def own_swin(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Our names and values; indices of relative positions and masks are dropped, as they follow from the windows.

    Args:
        state: the authors' state dict of the backbone alone.
        name: see :func:`naming`.

    Raises:
        KeyError: an unknown key.
        ValueError: what merges patches is not that of 2 x 2 tokens.
    """
    found = {}
    for key, value in state.items():
        if key.endswith(_BUFFERS):
            continue
        # Merging belongs to the stage after it here.
        merge = re.fullmatch(rf"{_STAGES[name]}\.(\d+)\.downsample\.(.+)", key)
        if merge:
            key = f"merge.{int(merge[1]) + 1}.{merge[2]}"
            value = _column_major(value) if name == MMDET else value
        found[key] = value
    return _MAPS[name].convert(found)


def official_swin(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The inverse of :func:`own_swin`, without the buffers."""
    found = {}
    for key, value in _MAPS[name].revert(state).items():
        merge = re.fullmatch(r"merge\.(\d+)\.(.+)", key)
        if merge:
            key = f"{_STAGES[name]}.{int(merge[1]) - 1}.downsample.{merge[2]}"
            value = _channel_major(value) if name == MMDET else value
        found[key] = value
    return found


def _column_major(value: Tensor) -> Tensor:
    """The last dimension from ``(channel, row, column)``, as ``nn.Unfold`` has it, to ``(column, row, channel)``."""
    if value.ndim == 0 or value.shape[-1] % 4:
        raise ValueError(f"a merge of 2 x 2 tokens is expected, its tensor is {tuple(value.shape)}")
    return value.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3).contiguous()


def _channel_major(value: Tensor) -> Tensor:
    """The inverse of :func:`_column_major`."""
    return value.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3).contiguous()


_BOTH: dict[str, Any] = dict(
    type=None,
    pretrain_img_size=224,
    patch_size=4,
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    window_size=7,
    mlp_ratio=4.0,
    qkv_bias=True,
    qk_scale=None,
    patch_norm=True,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    out_indices=(0, 1, 2, 3),
    frozen_stages=-1,
    pretrained=None,
    init_cfg=None,
)
_ARGUMENTS: dict[str, dict[str, Any]] = {
    MICROSOFT: dict(
        **_BOTH,
        _target_=None,
        in_chans=3,
        embed_dim=96,
        drop_path_rate=0.2,
        norm_layer="LayerNorm",
        ape=False,
        dilation=False,
        use_checkpoint=False,
    ),
    MMDET: dict(
        **_BOTH,
        in_channels=3,
        embed_dims=96,
        strides=(4, 2, 2, 2),
        drop_path_rate=0.1,
        use_abs_pos_embed=False,
        act_cfg={"type": "GELU"},
        norm_cfg={"type": "LN"},
        with_cp=False,
        convert_weights=False,
    ),
}
#: values that are the only ones supported
_FIXED: dict[str, dict[str, Any]] = {
    name: dict(qk_scale=None, patch_norm=True, drop_rate=0.0, attn_drop_rate=0.0, **more)
    for name, more in {
        MICROSOFT: dict(norm_layer="LayerNorm", ape=False, dilation=False),
        MMDET: dict(use_abs_pos_embed=False, act_cfg={"type": "GELU"}, norm_cfg={"type": "LN"}),
    }.items()
}


def swin_config(entry: str, given: Mapping[str, Any], name: str = MICROSOFT) -> dict[str, Any]:
    """Our spec for the arguments of the authors' Swin.

    Args:
        entry: for messages.
        given: the arguments; files of trained weights, checkpointing, and the name of the class are passed over.
        name: whose arguments they are, see :func:`naming`.

    Raises:
        TypeError: an argument that the authors' Swin does not have.
        ValueError: a value that is not supported.
    """
    from zoo.backbones.swin import Swin

    args = official_arguments(f"{entry} backbone", given, _ARGUMENTS[name])
    for key, value in _FIXED[name].items():
        if args[key] != value:
            raise refuse(entry, f"backbone.{key}", args[key], repr(value))
    if name == MMDET and tuple(args["strides"]) != (args["patch_size"],) + (2,) * (len(args["depths"]) - 1):
        raise refuse(entry, "backbone.strides", args["strides"], "patch_size, then 2 for each further stage")
    # Theirs freeze the merging of patches with the stage before it.
    if args["frozen_stages"] > (1 if name == MICROSOFT else 0):
        raise refuse(entry, "backbone.frozen_stages", args["frozen_stages"], "-1 and 0 (the stem)")
    return dict(
        type=Swin,
        patch_size=args["patch_size"],
        in_chans=args["in_chans" if name == MICROSOFT else "in_channels"],
        num_classes=0,
        embed_dim=args["embed_dim" if name == MICROSOFT else "embed_dims"],
        depths=tuple(args["depths"]),
        num_heads=tuple(args["num_heads"]),
        window_size=args["window_size"],
        mlp_ratio=float(args["mlp_ratio"]),
        qkv_bias=args["qkv_bias"],
        drop_path_rate=args["drop_path_rate"],
        out_indices=tuple(args["out_indices"]),
        frozen_stages=min(args["frozen_stages"], 0),
    )


_TINY = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
_BASE = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
_LARGE = dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
#: DINO's names of Swins -> their arguments
NAMED: dict[str, dict[str, Any]] = {
    "swin_T_224_1k": dict(**_TINY, window_size=7),
    "swin_B_224_22k": dict(**_BASE, window_size=7),
    "swin_B_384_22k": dict(**_BASE, window_size=12),
    "swin_L_224_22k": dict(**_LARGE, window_size=7),
    "swin_L_384_22k": dict(**_LARGE, window_size=12),
}
