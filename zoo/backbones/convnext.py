"""ConvNeXt as dense tasks use it: maps of its stages, each normalised.

A ConvNet for the 2020s (arXiv:2201.03545). This is the form of the authors' segmentation code
(github.com/facebookresearch/ConvNeXt, MIT) and of Hugging Face transformers' ``ConvNextBackbone``, where each map that
is given has a LayerNorm of its own. The classifier of the paper is timm's, see :mod:`zoo.backbones.timm`. Difference:
maps that the strides do not divide are zero-padded, unless ``drop_remainder`` says to cut them as theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.backbones.hybrid_base import ConvEmbed, HybridPyramid
from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.drop_path import DropPath
from zoo.layers.patch_conv import PatchConv
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_linear import TokenLinear

_EPS = 1e-6


class ConvNeXtBlock(nn.Module):
    """7x7 depth-wise convolution, norm, MLP, scale of the channels, added to the input: ``[B, H, W, C]``.

    Args:
        dim: channels C.
        drop_path: probability of dropping the branch for an image, in training.
        scale: what the scale starts at; 0 for none.
    """

    def __init__(self, dim: int, drop_path: float = 0.0, scale: float = 1e-6):
        super().__init__()
        self.conv = DepthwiseConv(dim, 7)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.fc1 = TokenLinear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = TokenLinear(4 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale)) if scale > 0 else None
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(self.act(self.fc1(self.norm(self.conv(x)))))
        return x + self.drop_path(y if self.scale is None else y * self.scale)


class NormConv(nn.Module):
    """LayerNorm, then a convolution of patches of 2 x 2: ``[B, C, H, W] -> [B, H', W', C']``."""

    def __init__(self, dim: int, out_dim: int, drop_remainder: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.conv = PatchConv(dim, out_dim, 2, drop_remainder)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.permute(0, 2, 3, 1))
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvNeXt(HybridPyramid):
    """Patches and blocks of four (or any number of) stages; a LayerNorm on every map that is given.

    Args:
        patch_size: stride of the stem; each later stage halves the map.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dims: width of each stage.
        depths: blocks of each stage.
        layer_scale: what the scales of the blocks start at; 0 for none.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        drop_remainder: leave out rows and columns that make no whole patch rather than pad with zeros.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.
    """

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 0,
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        layer_scale: float = 1e-6,
        drop_path_rate: float = 0.0,
        drop_remainder: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        n = len(embed_dims)
        depths = per_stage("depths", depths, n)
        self._describe(
            embed_dims,
            [patch_size * 2**i for i in range(n)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        patches = PatchConv(in_chans, embed_dims[0], patch_size, drop_remainder)
        stem = ConvEmbed(patches, nn.LayerNorm(embed_dims[0], eps=_EPS))
        later = (NormConv(embed_dims[i], embed_dims[i + 1], drop_remainder) for i in range(n - 1))
        self.embeds = nn.ModuleList([stem, *later])
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            nn.ModuleList(ConvNeXtBlock(embed_dims[i], rate, layer_scale) for rate in rates[i]) for i in range(n)
        )
        #: by the number of the stage; a classifier reads the last map without it
        given = {} if num_classes else {str(i): nn.LayerNorm(embed_dims[i], eps=_EPS) for i in self.out_indices}
        self.norms = nn.ModuleDict(given)
        self._finish(depths, head_norm_eps=_EPS)

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Normalised maps ``[B, C_i, H/s_i, W/s_i]`` (sizes rounded up) of ``out_indices``."""
        maps = super().forward_features(x)
        if not self.norms:
            return maps
        normed = (self.norms[str(i)](m.permute(0, 2, 3, 1)) for i, m in zip(self.out_indices, maps))
        return tuple(m.permute(0, 3, 1, 2) for m in normed)
