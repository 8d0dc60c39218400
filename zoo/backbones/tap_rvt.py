"""TAP-RVT: robust vision transformers whose blocks attend to tokens pooled as wide as each asks for.

Robustifying Token Attention for Vision Transformers (ICCV 2023, arXiv 2303.11126); RVT: Towards Robust Vision
Transformer (CVPR 2022, arXiv 2105.07926). Authors' code: github.com/guoyongcs/TAPADL (MIT). Differences: any map is
accepted, the authors' must be square; rows and columns that make no whole patch are padded unless ``drop_remainder``.
The attentions are recorded for the attention diversification loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.layers.drop_path import DropPath
from zoo.layers.patch_conv import PatchConv
from zoo.layers.token_linear import TokenLinear
from zoo.layers.token_pooling import TokenAwarePooling
from zoo.mixers.tap import RecordedAttention
from zoo.registry import register_model, variant

#: tokens that the authors' mask of positions is made for: a map of 14 x 14
MASKED_TOKENS = 196


class ConvMlp(nn.Module):
    """1x1, 3x3 depth-wise and 1x1 convolution, each with BatchNorm, GELU between; ``[B, C, H, W]``."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.bn3 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.fc1(x)))
        x = self.act(self.bn2(self.dwconv(x)))
        return self.bn3(self.fc2(x))


class TapRvtBlock(nn.Module):
    """Attention over pooled tokens, then the convolutional MLP, each added to ``[B, H, W, C]``."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, num_scales: int, mask_size: int, drop_path: float):
        super().__init__()
        self.pool = TokenAwarePooling(dim, num_scales)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RecordedAttention(dim, num_heads, mask_size=mask_size)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn(self.norm1(self.pool(x)).flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class RvtEmbed(nn.Module):
    """7x7 convolution of stride 2, BatchNorm, max pooling, patches: ``[B, C, H, W] -> [B, H', W', dim]``."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, drop_remainder: bool):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 32, 7, 2, 2)
        self.bn = nn.BatchNorm2d(32)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.proj = PatchConv(32, dim, 1 if patch_size == 4 else 4, drop_remainder)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.pool(self.bn(self.conv(x)))).permute(0, 2, 3, 1)


class TapRvt(Backbone):
    """TAP-RVT (and, with ``use_mask``, TAP-RVT-plus, whose position-aware scaling takes at most 196 tokens).

    Args:
        base_dims: channels of a head of each stage.
        depth: blocks of each stage.
        heads: heads of each stage; the width is the product with ``base_dims``.
        mlp_ratio: hidden width of the MLPs over the stage's.
        num_classes: classes; 0 for features.
        in_chans: channels of the image.
        patch_size: 4 for a stride of 4, anything else for 16.
        drop_path_rate: stochastic depth, growing linearly to less than this.
        use_mask, masked_block: position-aware attention scaling in the first so many blocks of the first stage.
        num_scales: scales of token-aware pooling.
        drop_remainder: leave out rows and columns that make no whole patch rather than pad with zeros.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted; (in ``forward``) more tokens than the mask has.

    Source: TAP-ADL section 3; RVT section 4 and table 2.
    """

    def __init__(
        self,
        base_dims: Sequence[int] = (64,),
        depth: Sequence[int] = (12,),
        heads: Sequence[int] = (6,),
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        patch_size: int = 16,
        drop_path_rate: float = 0.0,
        use_mask: bool = False,
        masked_block: int | None = None,
        num_scales: int = 4,
        drop_remainder: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        if not len(base_dims) == len(depth) == len(heads):
            raise ValueError(f"base_dims={base_dims}, depth={depth} and heads={heads} must have one entry a stage")
        if use_mask and masked_block is None:
            raise ValueError("use_mask=True needs masked_block, the number of blocks that have the mask")
        dims = [d * h for d, h in zip(base_dims, heads)]
        for a, b in zip(dims, dims[1:]):
            if b % a:
                raise ValueError(
                    f"base_dims * heads = {dims}: accepted are widths that are multiples of the one before"
                )
        stride = 4 if patch_size == 4 else 16
        self._describe(
            dims,
            [stride * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        self.depths = tuple(depth)
        masked = (masked_block or 0) if use_mask else 0
        self.patch_embed = RvtEmbed(in_chans, dims[0], patch_size, drop_remainder)
        total, done = sum(depth), 0
        self.stages = nn.ModuleList()
        for i, (dim, n) in enumerate(zip(dims, depth)):
            self.stages.append(
                nn.ModuleList(
                    TapRvtBlock(
                        dim,
                        heads[i],
                        mlp_ratio,
                        num_scales,
                        MASKED_TOKENS if i == 0 and j < masked else 0,
                        drop_path_rate * (done + j) / total,
                    )
                    for j in range(n)
                )
            )
            done += n
        self.pools = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, groups=a) for a, b in zip(dims, dims[1:]))
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6) if num_classes else None
        self.head = TokenLinear(dims[-1], num_classes) if num_classes else None
        self.freeze()

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.patch_embed(x)  # [B, H, W, C] from here on
        maps = []
        for i, stage in enumerate(self.stages):
            if i:
                x = self.pools[i - 1](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            for block in stage.children():
                x = self.run_block(block, x)
            maps.append(x.permute(0, 3, 1, 2))
        return maps, x

    def forward_head(self, trunk: Tensor) -> Tensor:
        pooled = trunk.mean((1, 2))
        return pooled if self.norm is None or self.head is None else self.head(self.norm(pooled))

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        like, norm = next(self.parameters()), self.norm
        self.num_classes = num_classes
        self.norm = self.head = None
        if num_classes:
            self.norm = norm or nn.LayerNorm(self.num_features, eps=1e-6).to(like)
            self.head = TokenLinear(self.num_features, num_classes).to(like)

    def stage_modules(self) -> list[list[nn.Module]]:
        later = [[self.pools[i - 1], self.stages[i]] for i in range(1, len(self.stages))]
        return [[self.patch_embed], [self.stages[0]], *later]

    def num_layers(self) -> int:
        return sum(self.depths) + 2

    def layer_id(self, name: str) -> int:
        part, *rest = name.split(".")
        if part == "patch_embed":
            return 0
        if part == "pools":
            return sum(self.depths[: int(rest[0]) + 1]) + 1
        if part == "stages":
            return sum(self.depths[: int(rest[0])]) + int(rest[1]) + 1
        return sum(self.depths) + 1


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapRvt)
def tap_rvt_tiny() -> dict[str, Any]:
    """TAP-RVT-Ti, 8.7 M parameters."""
    return dict(base_dims=(32, 32), depth=(10, 2), heads=(6, 12))


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapRvt)
def tap_rvt_small() -> dict[str, Any]:
    """TAP-RVT-S, 22.3 M parameters."""
    return dict(heads=(6,))


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapRvt)
def tap_rvt_base() -> dict[str, Any]:
    """TAP-RVT-B, 87.1 M parameters."""
    return dict(heads=(12,))


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapRvt)
def tap_rvt_tiny_plus() -> dict[str, Any]:
    """TAP-RVT-Ti-plus, with position-aware scaling, 11.0 M parameters."""
    return dict(base_dims=(32, 32), depth=(10, 2), heads=(6, 12), use_mask=True, masked_block=10)


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapRvt)
def tap_rvt_small_plus() -> dict[str, Any]:
    """TAP-RVT-S-plus, with position-aware scaling, 23.5 M parameters."""
    return dict(heads=(6,), use_mask=True, masked_block=5)


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapRvt)
def tap_rvt_base_plus() -> dict[str, Any]:
    """TAP-RVT-B-plus, with position-aware scaling, 89.4 M parameters."""
    return dict(heads=(12,), use_mask=True, masked_block=5)
