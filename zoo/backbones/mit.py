"""MiT, the Mix Transformer of SegFormer: overlapping patches, keys from a reduced map, convolutions in the MLPs.

SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers (arXiv:2105.15203, section 3.1, table
6). The authors' code is under a non-commercial licence and was not read: this computes what Hugging Face transformers'
``SegformerModel`` (Apache-2.0) computes. Difference: maps smaller than a reduction are padded to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoo.backbones.hybrid_base import ConvEmbed, HybridPyramid
from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.pre_norm_block import PreNormBlock
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.spatial_reduction import SpatialReductionAttention
from zoo.registry import register_model, variant


class MixMlp(nn.Module):
    """Linear, 3x3 depth-wise convolution, GELU, linear: ``[B, H, W, C] -> [B, H, W, C]`` (eq. 3)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden)
        self.conv = DepthwiseConv(hidden, 3)
        self.act = nn.GELU()
        self.fc2 = TokenLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.conv(self.fc1(x))))


class MixTransformer(HybridPyramid):
    """MiT.

    Args:
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dims: width of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        sr_ratios: reduction of the keys' map in each stage.
        mlp_ratios: hidden channels of the MLPs over the width.
        patch_sizes: side of the patches of each stage, odd, larger than the stride.
        patch_strides: distance of the patches.
        norm_eps: epsilon of all LayerNorms.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        patch_sizes: Sequence[int] = (7, 3, 3, 3),
        patch_strides: Sequence[int] = (4, 2, 2, 2),
        norm_eps: float = 1e-5,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        n = len(embed_dims)
        depths, num_heads = per_stage("depths", depths, n), per_stage("num_heads", num_heads, n)
        sr_ratios, mlp_ratios = per_stage("sr_ratios", sr_ratios, n), per_stage("mlp_ratios", mlp_ratios, n)
        sizes, steps = per_stage("patch_sizes", patch_sizes, n), per_stage("patch_strides", patch_strides, n)
        strides = [steps[0]]
        for step in steps[1:]:
            strides.append(strides[-1] * step)
        self._describe(
            embed_dims,
            strides,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        widths = [in_chans, *embed_dims]
        self.embeds = nn.ModuleList(
            ConvEmbed(
                nn.Conv2d(widths[i], widths[i + 1], sizes[i], steps[i], sizes[i] // 2),
                nn.LayerNorm(widths[i + 1], eps=norm_eps),
            )
            for i in range(n)
        )
        rates = drop_path_rates(drop_path_rate, depths)

        def block(i: int, rate: float) -> PreNormBlock:
            dim = embed_dims[i]
            made = PreNormBlock(dim, SpatialReductionAttention(dim, num_heads[i], sr_ratios[i]), 1, rate, norm_eps)
            made.mlp = MixMlp(dim, int(dim * mlp_ratios[i]))  # type: ignore[assignment]
            return made

        self.stages = nn.ModuleList(nn.ModuleList(block(i, rate) for rate in rates[i]) for i in range(n))
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=norm_eps) for dim in embed_dims)
        self._finish(depths, head_norm_eps=None)

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        for embed, stage, norm in zip(self.embeds, self.stages, self.norms):
            y = embed(x)  # [B, H, W, C]
            for block in stage.children():
                y = self.run_block(block, y)
            y = norm(y)
            x = y.permute(0, 3, 1, 2)
            maps.append(x)
        return maps, y.flatten(1, 2)

    def stage_modules(self) -> list[list[nn.Module]]:
        stem, *stages = super().stage_modules()
        return [stem, *([*modules, norm] for modules, norm in zip(stages, self.norms))]

    def layer_id(self, name: str) -> int:
        part, number, *_ = name.split(".")
        return sum(self.depths[: int(number) + 1]) if part == "norms" else super().layer_id(name)


_LARGE = dict(embed_dims=(64, 128, 320, 512))


@register_model(task="classification", family="mit", input_size=32)
@variant(MixTransformer)
def mit_nano() -> dict[str, Any]:
    """For small images: 0.2 million parameters."""
    return dict(
        embed_dims=(16, 32, 48, 64),
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 3, 4),
        sr_ratios=(4, 2, 1, 1),
        patch_sizes=(3, 3, 3, 3),
        patch_strides=(2, 2, 2, 2),
    )


@register_model(task="classification", family="mit", input_size=224)
@variant(MixTransformer)
def mit_b0() -> dict[str, Any]:
    """MiT-B0, 3.6 M parameters."""
    return {}


@register_model(task="classification", family="mit", input_size=224)
@variant(MixTransformer)
def mit_b1() -> dict[str, Any]:
    """MiT-B1, 13.7 M parameters."""
    return dict(_LARGE)


@register_model(task="classification", family="mit", input_size=224)
@variant(MixTransformer)
def mit_b2() -> dict[str, Any]:
    """MiT-B2, 24.7 M parameters."""
    return dict(_LARGE, depths=(3, 4, 6, 3))


@register_model(task="classification", family="mit", input_size=224)
@variant(MixTransformer)
def mit_b3() -> dict[str, Any]:
    """MiT-B3, 44.6 M parameters."""
    return dict(_LARGE, depths=(3, 4, 18, 3))


@register_model(task="classification", family="mit", input_size=224)
@variant(MixTransformer)
def mit_b4() -> dict[str, Any]:
    """MiT-B4, 61.4 M parameters."""
    return dict(_LARGE, depths=(3, 8, 27, 3))


@register_model(task="classification", family="mit", input_size=224)
@variant(MixTransformer)
def mit_b5() -> dict[str, Any]:
    """MiT-B5, 82.0 M parameters."""
    return dict(_LARGE, depths=(3, 6, 40, 3))
