"""The Pyramid Vision Transformer with linear attention in some stages and its own attention in the others.

PVT (ICCV 2021, arXiv 2102.12122); ``agent_pvt.py`` and ``inline_pvt.py`` make the papers' networks of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from zoo.backbones.hybrid_base import ConvEmbed, HybridPyramid, patch_chain
from zoo.layers.padding import to_pair
from zoo.layers.patch_conv import PatchConv
from zoo.layers.pre_norm_block import PreNormBlock
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_positions import TokenPositions
from zoo.mixers.spatial_reduction import SpatialReductionAttention


class HybridPVT(HybridPyramid):
    """Patches, positions and blocks of four (or any number of) stages.

    Args:
        img_size: image size that positions are made for, a number or (height, width).
        patch_size: stride of the stem; each later stage halves the map.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dims: width of each stage.
        num_heads: heads of each stage.
        mlp_ratios: hidden channels of the MLPs over the width.
        qkv_bias: bias of the projections to queries, keys and values.
        qk_scale: factor of the logits of PVT's attention, ``head_dim ** -0.5`` by default; the other does not heed it.
        norm_eps: epsilon of the blocks' norms; those of patches and reductions have 1e-5.
        depths: blocks of each stage.
        attn_type: for each stage the first of :attr:`letters`, linear attention, or the second, PVT's own.
        sr_ratios: reduction of the keys' map in stages with PVT's attention.
        positions_by_count: a first map of as many positions as were made takes them as they are, whatever its shape, as
            the authors' code does; otherwise they are interpolated wherever the shape differs.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        drop_remainder: leave out rows and columns that make no whole patch rather than pad with zeros.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.
    """

    #: of a stage with linear attention, and of one with PVT's own
    letters = "AB"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        norm_eps: float = 1e-6,
        depths: Sequence[int] = (2, 2, 2, 2),
        attn_type: str = "AAAA",
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        positions_by_count: bool = False,
        drop_path_rate: float = 0.0,
        drop_remainder: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        n = len(embed_dims)
        depths = per_stage("depths", depths, n)
        num_heads, mlp_ratios = per_stage("num_heads", num_heads, n), per_stage("mlp_ratios", mlp_ratios, n)
        sr_ratios = per_stage("sr_ratios", sr_ratios, n)
        linear, softmax = self.letters[0], self.letters[1]
        if len(attn_type) != n or set(attn_type) - set(self.letters):
            raise ValueError(
                f"attn_type={attn_type!r}: accepted are {n} letters {linear} (linear) or {softmax} (PVT's attention)"
            )
        self._describe(
            embed_dims,
            [patch_size * 2**i for i in range(n)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        patch_sizes = [patch_size] + [2] * (n - 1)
        self.grids = patch_chain(to_pair(img_size, "img_size"), patch_sizes, drop_remainder)

        def mixer(i: int) -> nn.Module:
            dim, heads = embed_dims[i], num_heads[i]
            if attn_type[i] == linear:
                return self.linear_mixer(i, dim, heads, qkv_bias)
            return SpatialReductionAttention(dim, heads, sr_ratios[i], qkv_bias, qk_scale)

        widths = [in_chans, *embed_dims]
        self.embeds = nn.ModuleList(
            ConvEmbed(
                PatchConv(widths[i], widths[i + 1], patch_sizes[i], drop_remainder),
                nn.LayerNorm(widths[i + 1]),
                TokenPositions(self.grids[i], widths[i + 1], by_count=positions_by_count and i == 0),
            )
            for i in range(n)
        )
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                PreNormBlock(embed_dims[i], mixer(i), mlp_ratios[i], rates[i][j], norm_eps) for j in range(depths[i])
            )
            for i in range(n)
        )
        self._finish(depths, head_norm_eps=None)

    def linear_mixer(self, stage: int, dim: int, num_heads: int, qkv_bias: bool) -> nn.Module:
        """The linear attention of a stage; ``self.grids`` has its map."""
        raise NotImplementedError
