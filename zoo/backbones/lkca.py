"""LKCA's vision transformers for small images: plain blocks with one large kernel in the place of attention.

LKCA: Large Kernel Convolutional Attention (arXiv 2401.05738). Authors' code:
github.com/CatworldLee/LKCA-MiniViTsTrainer-Pytorch-CIFAR-TinyImageNet (no licence file; this follows the paper and
recorded results). Its classes Large_ViT_cnn and Large_ViT_vit are two views of one function, and one class here.

What differs here: any image size runs (the position table is interpolated, the kernel keeps its scale);
``num_classes=0`` has neither the last norm nor the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.level_trunk import LayerTrunk
from zoo.layers.padding import pad_chw, to_pair
from zoo.layers.pre_norm_block import PreNormBlock
from zoo.layers.token_linear import TokenLinear
from zoo.layers.token_positions import TokenPositions
from zoo.mixers.lkca import LargeKernelAttention
from zoo.registry import register_model, variant


class PatchEmbed(nn.Module):
    """Linear projection of patches and learned positions: ``[B, 3, H, W] -> [B, H/p, W/p, C]`` (rounded up)."""

    def __init__(self, in_chans: int, dim: int, patch: tuple[int, int], grid: tuple[int, int]):
        super().__init__()
        self.patch = patch
        self.proj = TokenLinear(in_chans * patch[0] * patch[1], dim)
        self.positions = TokenPositions(grid, dim)

    def forward(self, x: Tensor) -> Tensor:
        ph, pw = self.patch
        x = pad_chw(x, self.patch)
        size = (x.shape[2] // ph, x.shape[3] // pw)
        x = x.unflatten(3, (size[1], pw)).unflatten(2, (size[0], ph))  # [B, channels, h, ph, w, pw]
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [B, h*w, ph*pw*channels]
        return self.positions(self.proj(x), size).unflatten(1, size)


class LKCAViT(LayerTrunk):
    """Plain vision transformer with large-kernel attention; every block is a stage.

    Args:
        img_size: image size, one number or (height, width), that the kernels and positions are made for.
        patch_size: pixels of a patch, one number or (height, width).
        num_classes: classes, or 0 for features.
        dim: channels.
        depth: blocks.
        value_dim: channels of the values (the authors' heads x channels of a head); ``dim`` by default.
        proj: whether a linear layer follows the values' mixing.
        mlp_ratio: hidden channels of the MLPs over ``dim``.
        in_chans: image channels.
        drop_path_rate: stochastic depth of every block.
        kernel_std: spread of the kernels' initial values; the authors start at 0.
        out_indices: blocks whose maps are given; the last by default.
        frozen_stages: patch embedding (0) and blocks (1 ...) that are not trained; -1 for none.

    Raises:
        ValueError: an image smaller than a patch.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 64,
        patch_size: int | tuple[int, int] = 8,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 9,
        value_dim: int | None = None,
        proj: bool = True,
        mlp_ratio: float = 2.0,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        kernel_std: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        (height, width), patch = to_pair(img_size, "img_size"), to_pair(patch_size, "patch_size")
        grid = (height // patch[0], width // patch[1])
        if 0 in grid:
            raise ValueError(f"img_size={img_size}: accepted are sizes from patch_size={patch_size}")
        self._describe(
            [dim] * depth,
            [patch[0]] * depth,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=(depth - 1,) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
        )
        self.patch_embed = PatchEmbed(in_chans, dim, patch, grid)
        self.layers = nn.ModuleList(
            PreNormBlock(
                dim,
                LargeKernelAttention(dim, 1, grid, value_dim, proj, kernel_std),
                mlp_ratio,
                drop_path_rate,
                norm_eps=1e-5,
            )
            for _ in range(depth)
        )
        # The authors' class token: nothing reads it, but their checkpoints hold it and their counts include it.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim), requires_grad=False)
        self._finish((depth,))

    @staticmethod
    def init_weights(m: nn.Module) -> None:
        """As the authors: Xavier's normal distribution for projections."""
        if isinstance(m, nn.Linear):
            nn.init.xavier_normal_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)

    def _make_head(self) -> None:
        self.norm = nn.LayerNorm(self.num_features) if self.num_classes else None
        self.head = TokenLinear(self.num_features, self.num_classes) if self.num_classes else None

    def forward_head(self, trunk: Tensor) -> Tensor:
        pooled = trunk.mean((1, 2))
        return pooled if self.norm is None or self.head is None else self.head(self.norm(pooled))


@register_model(task="classification", family="lkca", input_size=32)
@variant(LKCAViT)
def lkca_nano() -> dict[str, Any]:
    """For small images (32 x 32): patches of 4 x 4, kernels that do not start at 0."""
    return dict(img_size=32, patch_size=4, dim=96, depth=4, kernel_std=0.02)


@register_model(task="classification", family="lkca", input_size=64)
@variant(LKCAViT)
def lkca_largevit() -> dict[str, Any]:
    """The authors' default, 2.2 M parameters."""
    return dict(dim=192, mlp_ratio=2, depth=9)


@register_model(task="classification", family="lkca", input_size=64)
@variant(LKCAViT)
def lkca_vit_8m() -> dict[str, Any]:
    """ViT-8M of the paper, 8.3 M parameters."""
    return dict(dim=306, mlp_ratio=2, depth=14)


@register_model(task="classification", family="lkca", input_size=64)
@variant(LKCAViT)
def lkca_vit_12m() -> dict[str, Any]:
    """ViT-12M of the paper, 12.9 M parameters."""
    return dict(dim=360, mlp_ratio=3, depth=12)
