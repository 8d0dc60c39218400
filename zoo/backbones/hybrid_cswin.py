"""The CSWin Transformer with linear attention in some blocks.

CSWin (CVPR 2022, arXiv 2107.00652); ``agent_cswin.py`` and ``inline_cswin.py`` make the papers' networks of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from zoo.backbones.hybrid_base import ConvEmbed, HybridPyramid, block_kinds
from zoo.layers.padding import to_pair
from zoo.layers.pre_norm_block import PreNormBlock
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.mixers.cross_shaped import CrossShapedAttention


class HybridCSWin(HybridPyramid):
    """Convolutional stem and merging, blocks with strips.

    Args:
        img_size: image size that the network is made for, a number or (height, width).
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dim: width of the first stage; it doubles.
        depth: blocks of each stage.
        split_size: width of the strips of softmax blocks, for each stage.
        la_split_size: width of the strips of linear blocks, for each stage. Where a strip covers the whole map, and in
            the last stage, there are no strips.
        num_heads: heads of each stage.
        mlp_ratio: hidden channels of the MLPs over the width.
        qkv_bias: bias of the projections to queries, keys and values.
        qk_scale: factor of the logits of softmax blocks, ``head_dim ** -0.5`` by default; the others do not heed it.
        norm_eps: epsilon of the norms of blocks and head; those of stem and merging layers have 1e-5.
        attn_type: see :func:`~zoo.backbones.hybrid_base.block_kinds`; the letters are :attr:`letters`.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        drop_remainder: leave out last rows and columns of the image that the stem's stride does not reach rather than
            pad with zeros.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.
    """

    #: of blocks with linear attention, and of CSWin's own
    letters = "AB"
    block: type[PreNormBlock] = PreNormBlock

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 64,
        depth: Sequence[int] = (2, 4, 18, 1),
        split_size: Sequence[int] = (1, 2, 7, 7),
        la_split_size: Sequence[int] = (56, 28, 14, 7),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        norm_eps: float = 1e-5,
        attn_type: str = "AABB",
        drop_path_rate: float = 0.0,
        drop_remainder: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        depths = list(depth)
        n = len(depths)
        split_size, la_split_size = per_stage("split_size", split_size, n), per_stage("la_split_size", la_split_size, n)
        num_heads = per_stage("num_heads", num_heads, n)
        kinds = block_kinds(attn_type, depths, self.letters)
        dims = [embed_dim * 2**i for i in range(n)]
        self._describe(
            dims,
            [4 * 2**i for i in range(n)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        # the stem is a 7x7 convolution of stride 4 padded by 2, a merging layer a 3x3 of stride 2 padded by 1
        height, width = to_pair(img_size, "img_size")
        if drop_remainder:
            grid = ((height - 3) // 4 + 1, (width - 3) // 4 + 1)
        else:
            grid = (-(-height // 4), -(-width // 4))
        self.grids = [grid]
        for _ in range(n - 1):
            self.grids.append((-(-self.grids[-1][0] // 2), -(-self.grids[-1][1] // 2)))
        rates = drop_path_rates(drop_path_rate, depths)

        def mixer(i: int, j: int) -> nn.Module:
            one_branch = True if i == n - 1 else None
            if kinds[i][j] == self.letters[0]:
                return self.linear_mixer(i, dims[i], num_heads[i], la_split_size[i], one_branch, qkv_bias)
            return CrossShapedAttention(
                dims[i],
                num_heads[i],
                split_size=split_size[i],
                input_size=self.grids[i],
                one_branch=one_branch,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
            )

        stem = nn.Conv2d(in_chans, embed_dim, 7, 4, padding=2)
        self.embeds = nn.ModuleList([ConvEmbed(stem, nn.LayerNorm(embed_dim), pad_to=1 if drop_remainder else 4)])
        for before, after in zip(dims, dims[1:]):
            self.embeds.append(ConvEmbed(nn.Conv2d(before, after, 3, 2, padding=1), nn.LayerNorm(after)))
        self.stages = nn.ModuleList(
            nn.ModuleList(self.block(dims[i], mixer(i, j), mlp_ratio, rates[i][j], norm_eps) for j in range(depths[i]))
            for i in range(n)
        )
        self._finish(depths, head_norm_eps=norm_eps)

    def linear_mixer(
        self, stage: int, dim: int, num_heads: int, split_size: int, one_branch: bool | None, qkv_bias: bool
    ) -> nn.Module:
        """The linear attention of a block; ``self.grids`` has its map, ``one_branch`` is true in the last stage."""
        raise NotImplementedError
