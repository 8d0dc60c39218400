"""STViT: a four-stage pyramid with super token attention.

Vision Transformer with Super Token Sampling (CVPR 2023, arXiv 2211.11167; SViT in its tables). Authors' code:
github.com/hhb072/STViT (MIT by the header of its files).

What differs here: maps stay channels-last inside, 1x1 convolutions are linear layers; ``projection`` must be given (the
authors' class fails without); ``num_classes=0`` has no projection either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.level_trunk import Level, LevelTrunk
from zoo.layers.drop_path import DropPath
from zoo.layers.position_encoding import ConvPositionEncoding
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.super_token import SuperTokenAttention
from zoo.registry import register_model, variant


class MapBatchNorm(nn.BatchNorm2d):
    """Batch normalisation of a channels-last map ``[B, H, W, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvMlp(nn.Module):
    """Linear, GELU, a depth-wise 3x3 convolution added to its input, linear; on ``[B, H, W, C]``."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden)
        self.act = nn.GELU()
        self.conv = ConvPositionEncoding(hidden, 3)
        self.fc2 = TokenLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.conv(self.act(self.fc1(x))))


class STViTBlock(nn.Module):
    """Position convolution, super token attention and MLP, each added to its input, on ``[B, H, W, C]``.

    Args:
        dim: channels C.
        num_heads, token_size, iterations, qkv_bias, qk_scale: see :class:`~zoo.mixers.super_token.SuperTokenAttention`.
        mlp_ratio: hidden channels of the MLP over C.
        drop_path: probability of dropping a branch for an image, in training.
        layer_scale: initial value of a learned factor a channel of both branches; None for none.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        token_size: int | tuple[int, int],
        iterations: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ):
        super().__init__()
        self.pos_embed = ConvPositionEncoding(dim, 3)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SuperTokenAttention(dim, num_heads, token_size, iterations, qkv_bias, qk_scale, affinity_grad=False)
        self.norm2 = MapBatchNorm(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        scaled = layer_scale is not None
        self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale))) if scaled else None  # type: ignore[arg-type]
        self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale))) if scaled else None  # type: ignore[arg-type]
        # Kernels of the authors' fold and unfold: constants that their checkpoints hold and their counts include. The
        # operator has no use for them.
        self.fold = nn.Parameter(torch.eye(9).view(9, 1, 3, 3), requires_grad=False)
        self.unfold = nn.Parameter(torch.eye(9).view(9, 1, 3, 3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_embed(x)
        y = self.attn(self.norm1(x))
        x = x + self.drop_path(y if self.gamma1 is None else self.gamma1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.gamma2 is None else self.gamma2 * y)


class Stem(nn.Module):
    """Four 3x3 convolutions, each with GELU and then BatchNorm: ``[B, 3, H, W] -> [B, H/4, W/4, C]`` (rounded up)."""

    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        steps = ((in_chans, dim // 2, 2), (dim // 2, dim // 2, 1), (dim // 2, dim, 2), (dim, dim, 1))
        layers: list[nn.Module] = []
        for a, b, stride in steps:
            layers += [nn.Conv2d(a, b, 3, stride, padding=1), nn.GELU(), nn.BatchNorm2d(b)]
        self.proj = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        # channels-last throughout: convolutions and linear layers then share one layout
        return self.proj(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)


class Merging(nn.Module):
    """3x3 convolution of stride 2 and BatchNorm: ``[B, H, W, C_in] -> [B, H/2, W/2, C_out]`` (rounded up)."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(in_dim, dim, 3, 2, padding=1), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class STViT(LevelTrunk):
    """Super token vision transformer.

    Args:
        in_chans: image channels.
        num_classes: classes, or 0 for features.
        embed_dim: channels of each stage.
        depths, num_heads: blocks and heads of each stage.
        n_iter: rounds of super token sampling of each stage.
        stoken_size: pixels of a cell of each stage, one number or (height, width); 1 is attention between all pixels.
        mlp_ratio: hidden channels of the MLPs over the stage's.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        qk_scale: factor of the logits between tokens; ``head_dim ** -0.5`` by default.
        drop_path_rate: stochastic depth of the last block; from 0 it grows linearly over the blocks.
        projection: channels of the layer before the classifier.
        layerscale: for each stage, whether the branches are scaled by learned factors.
        init_values: start of these factors.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: arguments for the stages differ in length, or ``projection`` below 1.
    """

    head_parts = ("proj", "norm", "head")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 5, 9, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        n_iter: int | Sequence[int] = 1,
        stoken_size: Sequence[int | tuple[int, int]] = (8, 4, 1, 1),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_path_rate: float = 0.1,
        projection: int = 1024,
        layerscale: bool | Sequence[bool] = False,
        init_values: float = 1e-6,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        n = len(embed_dim)
        lengths = {len(depths), len(num_heads), len(stoken_size)}
        if lengths != {n} or not n:
            raise ValueError(
                f"embed_dim={embed_dim}, depths={depths}, num_heads={num_heads} and stoken_size={stoken_size} must "
                "have one entry a stage"
            )
        if not isinstance(projection, int) or projection < 1:
            raise ValueError(f"projection={projection!r}: accepted are numbers of channels from 1")
        n_iter, layerscale = per_stage("n_iter", n_iter, n), per_stage("layerscale", layerscale, n)
        self._describe(
            embed_dim,
            [4 * 2**i for i in range(n)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        self.projection = projection
        rates = drop_path_rates(drop_path_rate, depths)
        self.patch_embed = Stem(in_chans, embed_dim[0])
        self.levels = nn.ModuleList(
            Level(
                [
                    STViTBlock(
                        embed_dim[i],
                        num_heads[i],
                        stoken_size[i],
                        n_iter[i],
                        mlp_ratio,
                        qkv_bias,
                        qk_scale,
                        rates[i][j],
                        init_values if layerscale[i] else None,
                    )
                    for j in range(depths[i])
                ],
                Merging(embed_dim[i], embed_dim[i + 1]) if i + 1 < n else None,
            )
            for i in range(n)
        )
        self._finish(depths)

    def _make_head(self) -> None:
        classes = self.num_classes
        self.proj = TokenLinear(self.num_features, self.projection) if classes else None
        self.norm = MapBatchNorm(self.projection) if classes else None
        self.head = TokenLinear(self.projection, classes) if classes else None

    def forward_head(self, trunk: Tensor) -> Tensor:
        if self.proj is None or self.norm is None or self.head is None:
            return trunk.mean((1, 2))
        return self.head(nn.functional.silu(self.norm(self.proj(trunk))).mean((1, 2)))


_SMALL = dict(embed_dim=(64, 128, 320, 512), depths=(3, 5, 9, 3), num_heads=(1, 2, 5, 8), init_values=1e-5)
_BASE = dict(embed_dim=(96, 192, 384, 512), depths=(4, 6, 14, 6), num_heads=(2, 3, 6, 8))
_LARGE = dict(embed_dim=(96, 192, 448, 640), depths=(4, 7, 19, 8), num_heads=(2, 3, 7, 10))
_SCALED = (False, False, True, True)


@register_model(task="classification", family="stvit", input_size=32)
@variant(STViT)
def stvit_nano() -> dict[str, Any]:
    """For small images (32 x 32): three stages, cells of 4 x 4 and 2 x 2 pixels, then full attention."""
    return dict(
        embed_dim=(32, 64, 128),
        depths=(1, 1, 1),
        num_heads=(1, 2, 4),
        stoken_size=(4, 2, 1),
        projection=256,
        drop_path_rate=0.0,
    )


@register_model(task="classification", family="stvit", input_size=224)
@variant(STViT)
def stvit_small_224() -> dict[str, Any]:
    """STViT-S, 25.5 M parameters."""
    return _SMALL


@register_model(task="classification", family="stvit", input_size=384)
@variant(STViT)
def stvit_small_384() -> dict[str, Any]:
    """STViT-S for images of 384 x 384."""
    return _SMALL


@register_model(task="classification", family="stvit", input_size=224)
@variant(STViT)
def stvit_base_224() -> dict[str, Any]:
    """STViT-B, 51.7 M parameters."""
    return dict(_BASE, layerscale=_SCALED)


@register_model(task="classification", family="stvit", input_size=384)
@variant(STViT)
def stvit_base_384() -> dict[str, Any]:
    """STViT-B for images of 384 x 384."""
    return dict(_BASE, layerscale=_SCALED)


@register_model(task="classification", family="stvit", input_size=224)
@variant(STViT)
def stvit_large_224() -> dict[str, Any]:
    """STViT-L, 95.0 M parameters."""
    return dict(_LARGE, layerscale=_SCALED)


@register_model(task="classification", family="stvit", input_size=384)
@variant(STViT)
def stvit_large_384() -> dict[str, Any]:
    """STViT-L for images of 384 x 384."""
    return dict(_LARGE, layerscale=_SCALED)
