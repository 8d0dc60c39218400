"""DiNAT-s: Swin's architecture with (dilated) neighborhood attention in the place of the windows.

Dilated Neighborhood Attention Transformer (arXiv 2209.15001, section 4). Authors' code:
github.com/SHI-Labs/Neighborhood-Attention-Transformer (MIT). What differs here: see ``zoo.backbones.nat``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.dinat import alternating
from zoo.backbones.level_trunk import Level
from zoo.backbones.nat import NATBlock, NATTrunk, checked_dilations
from zoo.layers.patch_conv import PatchConv
from zoo.layers.patch_merging import PatchMerging
from zoo.layers.stages import drop_path_rates
from zoo.registry import register_model, variant


class PatchEmbed(nn.Module):
    """Convolution of patches that do not overlap, and LayerNorm: ``[B, 3, H, W] -> [B, H/p, W/p, C]`` (rounded up)."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, norm: bool = True, norm_eps: float = 1e-5):
        super().__init__()
        self.proj = PatchConv(in_chans, dim, patch_size)
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Merging(PatchMerging):
    """Swin's patch merging of a channels-last map: ``[B, H, W, C] -> [B, H/2, W/2, 2C]`` (rounded up)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class DiNATs(NATTrunk):
    """DiNAT-s.

    Args:
        patch_size: pixels along the side of a patch.
        in_chans: image channels.
        num_classes: classes, or 0 for features.
        embed_dim: channels of the first stage; they double from stage to stage.
        depths, num_heads: blocks and heads of each stage.
        kernel_size, dilations, qkv_bias, qk_scale, mlp_ratio, norm_eps: see :class:`~zoo.backbones.nat.NAT`.
        drop_path_rate: stochastic depth of the last block; from 0 it grows linearly over the blocks.
        patch_norm: LayerNorm after the patch embedding.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: ``depths``, ``num_heads`` and ``dilations`` do not fit together.
    """

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_path_rate: float = 0.2,
        patch_norm: bool = True,
        norm_eps: float = 1e-5,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        if len(depths) != len(num_heads) or not depths:
            raise ValueError(f"depths={depths} and num_heads={num_heads} must have one entry a stage")
        per_block = checked_dilations(dilations, depths)
        dims = [embed_dim * 2**i for i in range(len(depths))]
        self._describe(
            dims,
            [patch_size * 2**i for i in range(len(depths))],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        rates = drop_path_rates(drop_path_rate, depths)
        options: dict[str, Any] = dict(mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, qk_scale=qk_scale, norm_eps=norm_eps)
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, patch_norm, norm_eps)
        self.levels = nn.ModuleList(
            Level(
                [
                    NATBlock(dim, num_heads[i], kernel_size, per_block[i][j], drop_path=rates[i][j], **options)
                    for j in range(depths[i])
                ],
                Merging(dim, norm_eps) if i + 1 < len(dims) else None,
            )
            for i, dim in enumerate(dims)
        )
        self._finish(depths, norm_eps)


_TINY, _LARGER = (2, 2, 6, 2), (2, 2, 18, 2)


@register_model(task="classification", family="dinat", input_size=224)
@variant(DiNATs)
def dinat_s_tiny() -> dict[str, Any]:
    """DiNAT-s-Tiny, 28.3 M parameters."""
    return dict(depths=_TINY, dilations=alternating(_TINY, (8, 4, 2, 1)), drop_path_rate=0.2)


@register_model(task="classification", family="dinat", input_size=224)
@variant(DiNATs)
def dinat_s_small() -> dict[str, Any]:
    """DiNAT-s-Small, 49.6 M parameters."""
    return dict(depths=_LARGER, dilations=alternating(_LARGER, (8, 4, 2, 1)), drop_path_rate=0.3)


@register_model(task="classification", family="dinat", input_size=224)
@variant(DiNATs)
def dinat_s_base() -> dict[str, Any]:
    """DiNAT-s-Base, 87.8 M parameters."""
    return dict(
        depths=_LARGER,
        num_heads=(4, 8, 16, 32),
        embed_dim=128,
        dilations=alternating(_LARGER, (8, 4, 2, 1)),
        drop_path_rate=0.5,
    )


@register_model(task="classification", family="dinat", input_size=224)
@variant(DiNATs)
def dinat_s_large() -> dict[str, Any]:
    """DiNAT-s-Large, 196.5 M parameters."""
    return dict(
        depths=_LARGER,
        num_heads=(6, 12, 24, 48),
        embed_dim=192,
        dilations=alternating(_LARGER, (8, 4, 2, 1)),
        drop_path_rate=0.35,
    )


@register_model(task="classification", family="dinat", input_size=384)
@variant(DiNATs)
def dinat_s_large_384() -> dict[str, Any]:
    """DiNAT-s-Large for images of 384 x 384: wider dilations."""
    return dict(
        depths=_LARGER,
        num_heads=(6, 12, 24, 48),
        embed_dim=192,
        dilations=alternating(_LARGER, (13, 6, 3, 1)),
        drop_path_rate=0.35,
    )
