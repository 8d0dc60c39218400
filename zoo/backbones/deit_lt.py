"""DeiT with a distillation token, as DeiT-LT trains it on long-tailed data.

DeiT-LT: Distillation Strikes Back for Vision Transformer Training on Long-Tailed Datasets (CVPR 2024, arXiv
2404.02900); DeiT (ICML 2021, arXiv 2012.12877). Authors' code: github.com/val-iisc/DeiT-LT (MIT). Differences: every
image size is accepted, and the classifier's logits are the mean of both heads' (the authors report each).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.base import Backbone
from zoo.backbones.hybrid_base import init_linear
from zoo.layers.drop_path import DropPath
from zoo.layers.mlp import Mlp
from zoo.layers.patch_conv import PatchConv, patches
from zoo.layers.stages import drop_path_rates
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.softmax import SoftmaxAttention
from zoo.registry import register_model, variant


class DeiTBlock(nn.Module):
    """Full attention and MLP over ``[B, N, C]``, each perhaps with a factor a channel, added to their input."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        layer_scale: float | None,
        drop_path: float,
        norm_eps: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SoftmaxAttention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale))) if layer_scale else None
        self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale))) if layer_scale else None
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def _scaled(self, x: Tensor, gamma: Tensor | None) -> Tensor:
        return self.drop_path(x if gamma is None else gamma * x)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._scaled(self.attn(self.norm1(x)[:, None])[:, 0], self.gamma1)  # a map of one row
        return x + self._scaled(self.mlp(self.norm2(x)), self.gamma2)


class DistilledViT(Backbone):
    """A plain vision transformer with a class and a distillation token, each with a classifier of its own.

    Args:
        img_size: image size that positions are made for (square).
        patch_size: pixels along the side of a token.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dim: channels.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over the width.
        qkv_bias: bias of the projections to queries, keys and values.
        layer_scale: initial factor of the residuals; None for none.
        norm_eps: epsilon of the norms.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        drop_remainder: leave out rows and columns that make no whole patch rather than pad with zeros.
        out_indices: blocks whose maps are given; the last by default.
        frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: DeiT section 3; DeiT-LT section 4.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        drop_remainder: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        self._describe(
            [embed_dim] * depth,
            [patch_size] * depth,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=(depth - 1,) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
        )
        self.depth, self.norm_eps = depth, norm_eps
        self.side = patches(img_size, patch_size, drop_remainder)
        if not self.side:
            raise ValueError(f"img_size={img_size} is smaller than patch_size={patch_size}")
        self.patch_embed = PatchConv(in_chans, embed_dim, patch_size, drop_remainder)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 + self.side**2, embed_dim))
        self.no_decay = ("cls_token", "dist_token", "pos_embed")
        rates = drop_path_rates(drop_path_rate, [depth])[0]
        self.blocks = nn.ModuleList(
            DeiTBlock(embed_dim, num_heads, mlp_ratio, qkv_bias, layer_scale, r, norm_eps) for r in rates
        )
        self._make_head(num_classes)
        nn.init.normal_(self.cls_token, std=1e-6)
        for table in (self.dist_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)
        init_linear(self)
        self.freeze()

    def _make_head(self, num_classes: int) -> None:
        self.norm = nn.LayerNorm(self.num_features, eps=self.norm_eps) if num_classes else None
        self.head = TokenLinear(self.num_features, num_classes) if num_classes else None
        self.head_dist = TokenLinear(self.num_features, num_classes) if num_classes else None

    def positions(self, size: tuple[int, int], square: bool) -> Tensor:
        """The table ``[1, 2 + H*W, C]`` for a map of ``size``.

        For another map, or an image that is not ``square``, the map's part is interpolated (bicubic) with the factor
        ``(n + 0.1) / side`` along each axis, as the authors do it.
        """
        if size == (self.side, self.side) and square:
            return self.pos_embed
        planes = self.pos_embed[:, 2:].transpose(1, 2).unflatten(2, (self.side, self.side))  # [1, C, side, side]
        factors = [(n + 0.1) / self.side for n in size]
        planes = F.interpolate(planes.float(), scale_factor=factors, mode="bicubic").to(planes.dtype)
        return torch.cat([self.pos_embed[:, :2], planes.flatten(2).transpose(1, 2)], dim=1)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``[B, 2 + H*W, C]`` (class, distillation, map) with positions, and the size (H, W) of the map."""
        square = x.shape[2] == x.shape[3]
        x = self.patch_embed(x)  # [B, C, H, W]
        size, B = (x.shape[2], x.shape[3]), x.shape[0]
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(B, -1, -1), self.dist_token.expand(B, -1, -1), tokens], dim=1)
        return tokens + self.positions(size, square), size

    def block_tokens(self, x: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Tokens ``[B, 2 + H*W, C]`` after every block, and the size (H, W) of their map."""
        tokens, size = self.embed(x)
        found = []
        for block in self.blocks:
            tokens = self.run_block(block, tokens)
            found.append(tokens)
        return found, size

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        tokens, size = self.block_tokens(x)
        return [t[:, 2:].transpose(1, 2).unflatten(2, size) for t in tokens], tokens[-1]

    def both_heads(self, trunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the class token and of the distillation token ``[B, classes]``, and the tokens' cosine ``[B]``.

        Raises:
            TypeError: there is no classifier (``num_classes`` is 0).
        """
        if self.norm is None or self.head is None or self.head_dist is None:
            raise TypeError("num_classes=0: there are no heads")
        cls, dist = self.norm(trunk[:, :2]).unbind(1)
        return self.head(cls), self.head_dist(dist), F.cosine_similarity(cls, dist, dim=1, eps=1e-6)

    def forward_both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the class token and of the distillation token, ``[B, classes]`` each, of images."""
        self.check_image(x)
        return self.both_heads(self.forward_trunk(x)[1])[:2]

    def forward_head(self, trunk: Tensor) -> Tensor:
        if self.head is None:
            return trunk[:, :2].mean(1)
        cls, dist, _ = self.both_heads(trunk)
        return (cls + dist) / 2

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        norm = self.norm
        self.num_classes = num_classes
        self._make_head(num_classes)
        if self.head is None or self.head_dist is None:
            return
        init_linear(self.head)
        init_linear(self.head_dist)
        self.norm = norm if norm is not None else self.norm
        self.to(self.cls_token.device, self.cls_token.dtype)

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.patch_embed], *([b] for b in self.blocks)]

    def num_layers(self) -> int:
        return self.depth + 2

    def layer_id(self, name: str) -> int:
        if name.startswith(("patch_embed", "pos_embed", "cls_token", "dist_token")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else self.depth + 1


@register_model(task="classification", family="deit_lt", input_size=32)
@variant(DistilledViT)
def deit_lt_nano() -> dict[str, Any]:
    """For small images (32 x 32): patches of 4 x 4, 0.5 M parameters."""
    return dict(img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3)


@register_model(task="classification", family="deit_lt", input_size=224)
@variant(DistilledViT)
def deit_base_distilled_patch16_224() -> dict[str, Any]:
    """DeiT-B with a distillation token, 87.3 M parameters."""
    return {}
