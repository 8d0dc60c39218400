"""Isotropic NAT and DiNAT: a plain vision transformer with neighborhood attention, and its full-attention baseline.

Neighborhood Attention Transformer (arXiv 2204.07143), Dilated Neighborhood Attention Transformer (arXiv 2209.15001,
section 5). Authors' code: github.com/SHI-Labs/Neighborhood-Attention-Transformer (MIT).

What differs here: the baseline ("ViT with relative positional biases") is neighborhood attention whose window is the
whole map of ``img_size``, which is the same function with the same table of biases, and on maps of another size, where
the authors' model fails, stays attention to that many nearest positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.backbones.dinat_s import PatchEmbed
from zoo.backbones.level_trunk import LayerTrunk
from zoo.backbones.nat import NATBlock, NATTrunk
from zoo.layers.stages import drop_path_rates
from zoo.registry import register_model, variant


class NATIsotropic(LayerTrunk, NATTrunk):
    """Blocks of one width on patches; every block is a stage of stride ``patch_size``.

    Args:
        img_size: image size of the full-attention model, which fixes its table of biases; any size runs.
        patch_size: pixels along the side of a patch.
        in_chans: image channels.
        num_classes: classes, or 0 for features.
        embed_dim: channels.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio, qkv_bias, qk_scale, norm_eps: see :class:`~zoo.backbones.nat.NAT`.
        kernel_size: side of the window, in positions; None for the whole map of ``img_size``.
        dilation: of every other block, from the second on; the others have 1.
        drop_path_rate: stochastic depth of the last block; from 0 it grows linearly over the blocks.
        patch_norm: LayerNorm after the patch embedding.
        out_indices: blocks whose maps are given; the last by default.
        frozen_stages: patch embedding (0) and blocks (1 ...) that are not trained; -1 for none.

    Raises:
        ValueError: ``kernel_size=None`` with a dilation, or an image smaller than a patch.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        kernel_size: int | None = 7,
        dilation: int = 1,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        norm_eps: float = 1e-5,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        if kernel_size is None and dilation != 1:
            raise ValueError(f"dilation={dilation}: accepted is 1 where kernel_size=None (attention to the whole map)")
        if img_size < patch_size:
            raise ValueError(f"img_size={img_size}: accepted are sizes from patch_size={patch_size}")
        self._describe(
            [embed_dim] * depth,
            [patch_size] * depth,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=(depth - 1,) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
        )
        window = img_size // patch_size if kernel_size is None else kernel_size
        options: dict[str, Any] = dict(mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, qk_scale=qk_scale, norm_eps=norm_eps)
        rates = drop_path_rates(drop_path_rate, (depth,))[0]
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, patch_norm, norm_eps)
        self.layers = nn.ModuleList(
            NATBlock(embed_dim, num_heads, window, dilation if i % 2 else 1, drop_path=rates[i], **options)
            for i in range(depth)
        )
        self._finish((depth,), norm_eps)


_BASE = dict(embed_dim=768, num_heads=24, drop_path_rate=0.4)


@register_model(task="classification", family="dinat", input_size=224)
@variant(NATIsotropic)
def nat_isotropic_small() -> dict[str, Any]:
    """Isotropic NAT-Small, 22.0 M parameters."""
    return dict(kernel_size=7)


@register_model(task="classification", family="dinat", input_size=224)
@variant(NATIsotropic)
def dinat_isotropic_small() -> dict[str, Any]:
    """Isotropic DiNAT-Small, 22.0 M parameters."""
    return dict(kernel_size=7, dilation=2)


@register_model(task="classification", family="dinat", input_size=224)
@variant(NATIsotropic)
def vitrpb_small() -> dict[str, Any]:
    """The baseline with full attention, 22.1 M parameters."""
    return dict(kernel_size=None)


@register_model(task="classification", family="dinat", input_size=224)
@variant(NATIsotropic)
def nat_isotropic_base() -> dict[str, Any]:
    """Isotropic NAT-Base, 86.5 M parameters."""
    return dict(_BASE, kernel_size=7)


@register_model(task="classification", family="dinat", input_size=224)
@variant(NATIsotropic)
def dinat_isotropic_base() -> dict[str, Any]:
    """Isotropic DiNAT-Base, 86.5 M parameters."""
    return dict(_BASE, kernel_size=7, dilation=2)


@register_model(task="classification", family="dinat", input_size=224)
@variant(NATIsotropic)
def vitrpb_base() -> dict[str, Any]:
    """The base-size baseline with full attention, 86.6 M parameters."""
    return dict(_BASE, kernel_size=None)
