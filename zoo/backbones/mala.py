"""MAViT: a convolution-friendly pyramid with magnitude-aware linear attention first and softmax attention later.

Rectifying Magnitude Neglect in Linear Attention (Fan et al., ICCV 2025, arXiv 2507.00698). Authors' code:
github.com/qhfan/MALA (no licence file; this follows the paper and recorded results). Difference: maps of features are
taken before the merging layer that ends a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.base import Backbone
from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.drop_path import DropPath
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.mala import MagnitudeAwareAttention, RotatedSoftmaxAttention, Rotation
from zoo.registry import register_model, variant

#: attention of a block by its letter
MIXERS = {"l": MagnitudeAwareAttention, "v": RotatedSoftmaxAttention}


class ConvMlp(nn.Module):
    """Linear, GELU, ``x + depthwise3x3(x)``, linear on ``[B, H, W, C]``."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden)
        self.act = nn.GELU()
        self.dwconv = DepthwiseConv(hidden, 3)
        self.fc2 = TokenLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class MAViTBlock(nn.Module):
    """Convolutional positions, attention, MLP; each added, the last two normalised before and perhaps scaled after.

    Args:
        dim: channels C.
        mixer: MALA or its softmax counterpart.
        hidden: hidden channels of the MLP.
        drop_path: probability of dropping a branch for an image, in training.
        layer_scale: start of the learned factor of each channel of a branch; None for no factors.
    """

    def __init__(self, dim: int, mixer: nn.Module, hidden: int, drop_path: float, layer_scale: float | None):
        super().__init__()
        self.pos = DepthwiseConv(dim, 3)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ConvMlp(dim, hidden)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        scaled = layer_scale is not None
        self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale))) if scaled else None  # type: ignore[arg-type]
        self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale))) if scaled else None  # type: ignore[arg-type]
        self.no_decay = ("gamma1", "gamma2") if scaled else ()

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """``[B, H, W, C]`` to the same; the tables of positions are :class:`~zoo.mixers.mala.Rotation`'s."""
        x = x + self.pos(x)
        y = self.attn(self.norm1(x), tables=(sin, cos))
        x = x + self.drop_path(y if self.gamma1 is None else y * self.gamma1)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.gamma2 is None else y * self.gamma2)


class ConvBatchNorm(nn.Module):
    """3 x 3 convolution and BatchNorm, ``[B, C, H, W]``; with stride 2 sizes are halved and rounded up."""

    def __init__(self, in_chans: int, out_chans: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class MAViTHead(nn.Module):
    """Projection, BatchNorm, swish, mean over the map, linear layer: ``[B, C, H, W] -> [B, classes]``."""

    def __init__(self, dim: int, projection: int, num_classes: int):
        super().__init__()
        self.proj = nn.Conv2d(dim, projection, 1)
        self.norm = nn.BatchNorm2d(projection)
        self.fc = TokenLinear(projection, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.norm(self.proj(x))).mean((2, 3)))


class MAViT(Backbone):
    """MAViT.

    Args:
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        flags: for each stage the attention of its blocks, "l" for MALA, "v" for softmax: one letter for all, or at
            least one for each block.
        embed_dims: width of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage; ``embed_dims / num_heads`` must be multiples of 4.
        mlp_ratios: hidden channels of the MLPs over the width.
        projection: channels that the classifier reads.
        layer_scale: for each stage where the learned factors of the branches start, or None for none.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.
    """

    stages: Any  # ModuleList of ModuleLists of MAViTBlock

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        flags: Sequence[Sequence[str]] = ("l", "l", "v", "v"),
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[float] = (3.5, 3.5, 3.5, 3.5),
        projection: int = 2048,
        layer_scale: Sequence[float | None] = (1.0, 1.0, 1.0, 1.0),
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        n = len(depths)
        dims, heads = per_stage("embed_dims", embed_dims, n), per_stage("num_heads", num_heads, n)
        ratios, scales = per_stage("mlp_ratios", mlp_ratios, n), per_stage("layer_scale", layer_scale, n)
        kinds = per_stage("flags", flags, n)
        for i, (kind, depth) in enumerate(zip(kinds, depths)):
            if set(kind) - set(MIXERS) or len(kind) not in (1, *range(depth, len(kind) + 1)):
                raise ValueError(
                    f"flags={flags!r}: accepted are, for stage {i}, one letter l (MALA) or v (softmax), or {depth} of "
                    "them"
                )
        self._describe(
            dims,
            [4 * 2**i for i in range(n)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        self.depths = tuple(depths)
        self.projection = projection
        half = dims[0] // 2
        self.stem = nn.Sequential(
            ConvBatchNorm(in_chans, half, 2),
            nn.GELU(),
            ConvBatchNorm(half, half, 1),
            nn.GELU(),
            ConvBatchNorm(half, half, 1),
            nn.GELU(),
            ConvBatchNorm(half, dims[0], 2),
        )
        rates = drop_path_rates(drop_path_rate, depths)
        self.rotations = nn.ModuleList(Rotation(dim // h, persistent=True) for dim, h in zip(dims, heads))
        self.stages = nn.ModuleList(
            nn.ModuleList(
                MAViTBlock(
                    dims[i],
                    MIXERS[kinds[i][j if len(kinds[i]) > 1 else 0]](dims[i], heads[i]),
                    int(ratios[i] * dims[i]),
                    rates[i][j],
                    scales[i],
                )
                for j in range(depths[i])
            )
            for i in range(n)
        )
        self.merges = nn.ModuleList(ConvBatchNorm(a, b, 2) for a, b in zip(dims, dims[1:]))
        self.head = MAViTHead(dims[-1], projection, num_classes) if num_classes else None
        _init(self)
        self.freeze()

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.stem(x)
        maps = []
        for i, (rotation, stage) in enumerate(zip(self.rotations, self.stages)):
            if i:
                x = self.merges[i - 1](x)
            y = x.permute(0, 2, 3, 1)  # [B, H, W, C]
            sin, cos = rotation(y.shape[1], y.shape[2])  # [H*W, head_dim]
            for block in stage:
                y = self.run_block(block, y, sin, cos)
            x = y.permute(0, 3, 1, 2)
            maps.append(x)
        return maps, x

    def forward_head(self, trunk: Tensor) -> Tensor:
        return trunk.mean((2, 3)) if self.head is None else self.head(trunk)

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        old, self.head, self.num_classes = self.head, None, num_classes
        if not num_classes:
            return
        head = MAViTHead(self.num_features, self.projection, num_classes)
        _init(head)
        head.to(next(self.parameters())).train(self.training)
        if old is not None:  # only the last layer is new
            head.proj, head.norm = old.proj, old.norm
        self.head = head

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.stem], [self.stages[0]], *([m, s] for m, s in zip(self.merges, self.stages[1:]))]

    def num_layers(self) -> int:
        return sum(self.depths) + 2

    def layer_id(self, name: str) -> int:
        part, *rest = name.split(".")
        if part == "stem":
            return 0
        if part == "merges":  # goes with the first block after it
            return sum(self.depths[: int(rest[0]) + 1]) + 1
        if part == "stages":
            return sum(self.depths[: int(rest[0])]) + int(rest[1]) + 1
        return sum(self.depths) + 1


def _init(model: nn.Module) -> None:
    """Linear and convolutional layers start at a truncated normal of 0.02, their biases at 0."""
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


@register_model(task="classification", family="mala", input_size=32)
@variant(MAViT)
def mavit_nano() -> dict[str, Any]:
    """For small images (32 x 32): two stages of MALA and one of softmax attention, 0.6 M parameters."""
    return dict(
        flags=("l", "l", "v"),
        embed_dims=(32, 64, 96),
        depths=(1, 2, 1),
        num_heads=(1, 2, 3),
        mlp_ratios=(3, 3, 3),
        projection=256,
        layer_scale=(1.0, 1.0, 1.0),
    )


@register_model(task="classification", family="mala", input_size=224)
@variant(MAViT)
def mavit_tiny() -> dict[str, Any]:
    """MAViT-T, 16.4 M parameters."""
    return dict(depths=(2, 2, 6, 2))


@register_model(task="classification", family="mala", input_size=224)
@variant(MAViT)
def mavit_small() -> dict[str, Any]:
    """MAViT-S, 27.1 M parameters."""
    return dict(embed_dims=(64, 128, 320, 512), depths=(3, 5, 9, 3), num_heads=(1, 2, 5, 8))


@register_model(task="classification", family="mala", input_size=224)
@variant(MAViT)
def mavit_base() -> dict[str, Any]:
    """MAViT-B, 49.8 M parameters."""
    return dict(
        embed_dims=(96, 192, 384, 512),
        depths=(4, 6, 12, 6),
        num_heads=(1, 2, 6, 8),
        layer_scale=(1.0, 1.0, 1e-6, 1e-6),
    )


@register_model(task="classification", family="mala", input_size=224)
@variant(MAViT)
def mavit_large() -> dict[str, Any]:
    """MAViT-L, 97.8 M parameters."""
    return dict(
        embed_dims=(96, 192, 448, 640),
        depths=(4, 7, 19, 8),
        num_heads=(1, 2, 7, 10),
        projection=2560,
        layer_scale=(1e-6, 1e-6, 1e-6, 1e-6),
    )
