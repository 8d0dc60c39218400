"""The Swin Transformer as dense tasks use it: maps of its stages, each normalised.

Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (arXiv:2103.14030). This is the form of the
authors' detection and segmentation code (github.com/SwinTransformer, MIT) and of Hugging Face transformers'
``SwinBackbone``: windows are shifted on maps of every size, maps are padded before the shift, and each map that is
given has a LayerNorm of its own. The classifier of the paper is timm's, see :mod:`zoo.backbones.timm`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.backbones.hybrid_base import ConvEmbed, HybridPyramid
from zoo.layers.patch_conv import PatchConv
from zoo.layers.patch_merging import PatchMerging
from zoo.layers.pre_norm_block import PreNormBlock
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.mixers.window import WindowAttention


class Swin(HybridPyramid):
    """Patches, windows, patch merging; a LayerNorm on every map that is given.

    Args:
        patch_size: stride of the stem; each later stage halves the map.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dim: width of the first stage; it doubles.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        window_size: side of the windows of all stages; every other block is shifted by half of it.
        mlp_ratio: hidden channels of the MLPs over the width.
        qkv_bias: bias of the projections to queries, keys and values.
        norm_eps: epsilon of the norms of the blocks and of the stem; those of the maps have 1e-5.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.
    """

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 0,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-5,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        depths = list(depths)
        n = len(depths)
        num_heads = per_stage("num_heads", num_heads, n)
        dims = [embed_dim * 2**i for i in range(n)]
        self._describe(
            dims,
            [patch_size * 2**i for i in range(n)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        rates = drop_path_rates(drop_path_rate, depths)

        def block(i: int, j: int) -> PreNormBlock:
            shift = window_size // 2 if j % 2 else 0
            mixer = WindowAttention(dims[i], num_heads[i], window_size, shift, qkv_bias, always_shift=True)
            return PreNormBlock(dims[i], mixer, mlp_ratio, rates[i][j], norm_eps)

        stem = ConvEmbed(PatchConv(in_chans, embed_dim, patch_size), nn.LayerNorm(embed_dim, eps=norm_eps))
        self.embeds = nn.ModuleList([stem, *(PatchMerging(dims[i]) for i in range(n - 1))])
        self.stages = nn.ModuleList(nn.ModuleList(block(i, j) for j in range(depths[i])) for i in range(n))
        #: by the number of the stage; a classifier reads the last map without it
        self.norms = nn.ModuleDict({} if num_classes else {str(i): nn.LayerNorm(dims[i]) for i in self.out_indices})
        self._finish(depths, head_norm_eps=norm_eps)

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Normalised maps ``[B, C_i, H/s_i, W/s_i]`` (sizes rounded up) of ``out_indices``."""
        maps = super().forward_features(x)
        if not self.norms:
            return maps
        normed = (self.norms[str(i)](m.permute(0, 2, 3, 1)) for i, m in zip(self.out_indices, maps))
        return tuple(m.permute(0, 3, 1, 2).contiguous() for m in normed)
