"""NAT: a four-stage pyramid with neighborhood attention.

Neighborhood Attention Transformer (CVPR 2023, arXiv 2204.07143). Authors' code:
github.com/SHI-Labs/Neighborhood-Attention-Transformer (MIT). With ``dilations`` the same class is DiNAT
(``zoo.backbones.dinat``); :class:`NATTrunk` and :class:`NATBlock` also serve DiNAT-s and the isotropic models.

What differs here: ``num_classes=0`` has neither the last norm nor the head; maps smaller than a window are padded as
the natten of the authors' training did, where later releases raise an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.level_trunk import Level, LevelTrunk
from zoo.layers.drop_path import DropPath
from zoo.layers.mlp import Mlp
from zoo.layers.stages import drop_path_rates
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.neighborhood import NeighborhoodAttention
from zoo.registry import register_model, variant


class NATBlock(nn.Module):
    """Neighborhood attention and MLP, each normalised before and added to its input, on ``[B, H, W, C]``.

    Args:
        dim: channels C.
        num_heads: attention heads.
        kernel_size, dilation, qkv_bias, qk_scale: see :class:`~zoo.mixers.neighborhood.NeighborhoodAttention`.
        mlp_ratio: hidden channels of the MLP over C.
        drop_path: probability of dropping a branch for an image, in training.
        layer_scale: initial value of a learned factor a channel of both branches; None for none.
        norm_eps: epsilon of the LayerNorms.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        dilation: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = NeighborhoodAttention(dim, num_heads, kernel_size, dilation, qkv_bias, qk_scale=qk_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        scaled = layer_scale is not None
        self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale))) if scaled else None  # type: ignore[arg-type]
        self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale))) if scaled else None  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn(self.norm1(x))
        x = x + self.drop_path(y if self.gamma1 is None else self.gamma1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.gamma2 is None else self.gamma2 * y)


class ConvTokenizer(nn.Module):
    """Two 3x3 convolutions of stride 2 with nothing between, and LayerNorm: ``[B, 3, H, W] -> [B, H/4, W/4, C]``."""

    def __init__(self, in_chans: int, dim: int, norm_eps: float = 1e-5):
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, dim // 2, 3, 2, padding=1), nn.Conv2d(dim // 2, dim, 3, 2, padding=1)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        # channels-last throughout: convolutions and linear layers then share one layout
        x = x.contiguous(memory_format=torch.channels_last)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ConvDownsampler(nn.Module):
    """3x3 convolution of stride 2 and LayerNorm: ``[B, H, W, C] -> [B, H/2, W/2, 2C]`` (rounded up)."""

    def __init__(self, dim: int, norm_eps: float = 1e-5):
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, 2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * dim, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class NATTrunk(LevelTrunk):
    """What the NAT family shares: after the levels a norm, the mean over the map and a linear layer."""

    def _finish(self, depths: Sequence[int], norm_eps: float = 1e-5) -> None:
        self.norm_eps = norm_eps
        super()._finish(depths)

    def _make_head(self) -> None:
        self.norm = nn.LayerNorm(self.num_features, eps=self.norm_eps) if self.num_classes else None
        self.head = TokenLinear(self.num_features, self.num_classes) if self.num_classes else None

    def forward_head(self, trunk: Tensor) -> Tensor:
        if self.norm is None or self.head is None:
            return trunk.mean((1, 2))
        return self.head(self.norm(trunk).mean((1, 2)))


def checked_dilations(dilations: Sequence[Sequence[int]] | None, depths: Sequence[int]) -> list[list[int]]:
    """A dilation for each block of each level; None is 1 everywhere.

    Raises:
        ValueError: the numbers of levels or blocks differ from ``depths``.
    """
    if dilations is None:
        return [[1] * depth for depth in depths]
    if len(dilations) != len(depths) or any(len(d) < depth for d, depth in zip(dilations, depths)):
        raise ValueError(f"dilations={dilations}: for depths={tuple(depths)} each level needs one dilation a block")
    return [list(d)[:depth] for d, depth in zip(dilations, depths)]


class NAT(NATTrunk):
    """Neighborhood attention transformer; with ``dilations`` the dilated one.

    Args:
        embed_dim: channels of the first stage; they double from stage to stage.
        mlp_ratio: hidden channels of the MLPs over the stage's.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        drop_path_rate: stochastic depth of the last block; from 0 it grows linearly over the blocks.
        in_chans: image channels.
        kernel_size: side of the window, in positions.
        dilations: for each stage the dilation of each block; 1 by default.
        num_classes: classes, or 0 for features.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        qk_scale: factor of the logits; ``head_dim ** -0.5`` by default.
        layer_scale: initial value of a learned factor a channel of both branches; None for none.
        norm_eps: epsilon of the LayerNorms.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: ``depths``, ``num_heads`` and ``dilations`` do not fit together.
    """

    def __init__(
        self,
        embed_dim: int = 64,
        mlp_ratio: float = 3.0,
        depths: Sequence[int] = (3, 4, 6, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        drop_path_rate: float = 0.2,
        in_chans: int = 3,
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] | None = None,
        num_classes: int = 1000,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        layer_scale: float | None = None,
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
            [4 * 2**i for i in range(len(depths))],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        rates = drop_path_rates(drop_path_rate, depths)
        self.patch_embed = ConvTokenizer(in_chans, embed_dim, norm_eps)
        self.levels = nn.ModuleList(
            Level(
                [
                    NATBlock(
                        dim,
                        num_heads[i],
                        kernel_size,
                        per_block[i][j],
                        mlp_ratio,
                        qkv_bias,
                        qk_scale,
                        rates[i][j],
                        layer_scale,
                        norm_eps,
                    )
                    for j in range(depths[i])
                ],
                ConvDownsampler(dim, norm_eps) if i + 1 < len(dims) else None,
            )
            for i, dim in enumerate(dims)
        )
        self._finish(depths, norm_eps)


@register_model(task="classification", family="nat", input_size=32)
@variant(NAT)
def nat_nano() -> dict[str, Any]:
    """For small images (32 x 32): three stages, windows of 3 x 3, 1.1 M parameters."""
    return dict(depths=(1, 1, 2), num_heads=(2, 4, 8), embed_dim=48, kernel_size=3, drop_path_rate=0.0)


@register_model(task="classification", family="nat", input_size=224)
@variant(NAT)
def nat_mini() -> dict[str, Any]:
    """NAT-Mini, 20.0 M parameters."""
    return dict(depths=(3, 4, 6, 5), num_heads=(2, 4, 8, 16), embed_dim=64, mlp_ratio=3, drop_path_rate=0.2)


@register_model(task="classification", family="nat", input_size=224)
@variant(NAT)
def nat_tiny() -> dict[str, Any]:
    """NAT-Tiny, 27.9 M parameters."""
    return dict(depths=(3, 4, 18, 5), num_heads=(2, 4, 8, 16), embed_dim=64, mlp_ratio=3, drop_path_rate=0.2)


@register_model(task="classification", family="nat", input_size=224)
@variant(NAT)
def nat_small() -> dict[str, Any]:
    """NAT-Small, 50.7 M parameters."""
    return dict(
        depths=(3, 4, 18, 5),
        num_heads=(3, 6, 12, 24),
        embed_dim=96,
        mlp_ratio=2,
        drop_path_rate=0.3,
        layer_scale=1e-5,
    )


@register_model(task="classification", family="nat", input_size=224)
@variant(NAT)
def nat_base() -> dict[str, Any]:
    """NAT-Base, 89.8 M parameters."""
    return dict(
        depths=(3, 4, 18, 5),
        num_heads=(4, 8, 16, 32),
        embed_dim=128,
        mlp_ratio=2,
        drop_path_rate=0.5,
        layer_scale=1e-5,
    )
