"""Sparsifiner: a plain vision transformer whose queries attend to predicted keys, and whose tokens may be pruned.

Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers (CVPR 2023, arXiv
2303.13755). Authors' code: github.com/lim142857/Sparsifiner (MIT). Difference: every image size is accepted (tables
over positions are interpolated).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.backbones.hybrid_base import init_linear, patch_chain
from zoo.layers.drop_path import DropPath
from zoo.layers.mlp import Mlp
from zoo.layers.padding import to_pair
from zoo.layers.patch_conv import PatchConv
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_linear import TokenLinear
from zoo.layers.token_positions import TokenPositions
from zoo.mixers.sparsifiner import SparsifinerAttention
from zoo.registry import register_model, variant


class SparsifinerBlock(nn.Module):
    """Sparse attention and MLP over ``[B, 1 + H*W, C]``, which also hands on which tokens are left.

    Args:
        mixer: the attention.
        dim: channels C.
        mlp_ratio: hidden width of the MLP over C.
        drop_path: rate of stochastic depth.
        norm_eps: epsilon of the norms.
        token_keep_rate: share of the map's tokens that are left after this block; None prunes none.
    """

    def __init__(
        self,
        mixer: SparsifinerAttention,
        dim: int,
        mlp_ratio: float,
        drop_path: float,
        norm_eps: float,
        token_keep_rate: float | None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.token_keep_rate = token_keep_rate

    def kept_tokens(self, positions: int) -> int | None:
        """How many of ``positions`` tokens are left after this block, where it prunes."""
        return None if self.token_keep_rate is None else math.ceil(self.token_keep_rate * positions)

    def forward(
        self, x: Tensor, size: tuple[int, int], token_mask: Tensor | None, kept: int | None
    ) -> tuple[Tensor, Tensor | None]:
        keep = self.kept_tokens(size[0] * size[1])
        y, token_mask = self.attn.forward_tokens(self.norm1(x), size, token_mask, kept, keep)
        x = x + self.drop_path(y)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        if token_mask is not None:
            x = torch.cat([x[:, :1], x[:, 1:] * token_mask[..., None].to(x.dtype)], dim=1)
        return x, token_mask


class Sparsifiner(Backbone):
    """Sparsifiner; every block is a stage of stride ``patch_size``.

    Args:
        img_size: image size that positions and predictors are made for, a number or (height, width).
        patch_size: pixels along the side of a token.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dim: channels.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over the width.
        qkv_bias, qk_scale, reduce_n_factor, reduce_c_factor, share_inout_proj, basis_threshold, coefficient_topk,
            coefficient_threshold, score_threshold, prune_rows, straight_through: see
            :class:`~zoo.mixers.sparsifiner.SparsifinerAttention`.
        attn_keep_rates: share of the keys that each query keeps, one number or one a block.
        token_keep_rates: share of the tokens that are left after each block; None where a block prunes none.
        representation_size: width of a layer with tanh before the classifier; None for no such layer.
        norm_eps: epsilon of the norms.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        drop_remainder: leave out rows and columns that make no whole patch rather than pad with zeros.
        out_indices: blocks whose maps are given; the last by default.
        frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 3 and table 1.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_keep_rates: float | Sequence[float] = 0.25,
        token_keep_rates: float | None | Sequence[float | None] = None,
        reduce_n_factor: float = 6,
        reduce_c_factor: int = 2,
        share_inout_proj: bool = False,
        basis_threshold: float = 0.02,
        coefficient_topk: int | None = 8,
        coefficient_threshold: float = 0.05,
        score_threshold: float | None = None,
        prune_rows: bool = False,
        straight_through: bool = True,
        representation_size: int | None = None,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        drop_remainder: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        attn_rates = per_stage("attn_keep_rates", attn_keep_rates, depth)
        token_rates = per_stage("token_keep_rates", token_keep_rates, depth)
        if any(r is not None and not 0 < r <= 1 for r in token_rates):
            raise ValueError(f"token_keep_rates={token_keep_rates!r}: accepted are shares above 0, up to 1, and None")
        self._describe(
            [embed_dim] * depth,
            [patch_size] * depth,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=(depth - 1,) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
        )
        self.depth = depth
        self.norm_eps, self.representation_size = norm_eps, representation_size
        grid = patch_chain(to_pair(img_size, "img_size"), [patch_size], drop_remainder)[0]
        self.patch_embed = PatchConv(in_chans, embed_dim, patch_size, drop_remainder)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.no_decay = ("cls_token",)
        self.pos_embed = TokenPositions(grid, embed_dim, prefix=1)
        rates = drop_path_rates(drop_path_rate, [depth])[0]
        self.blocks = nn.ModuleList(
            SparsifinerBlock(
                SparsifinerAttention(
                    embed_dim,
                    num_heads,
                    grid,
                    attn_rates[i],
                    reduce_n_factor,
                    reduce_c_factor,
                    share_inout_proj,
                    basis_threshold,
                    coefficient_topk,
                    coefficient_threshold,
                    score_threshold,
                    prune_rows,
                    class_token=True,
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    straight_through=straight_through,
                ),
                embed_dim,
                mlp_ratio,
                rates[i],
                norm_eps,
                token_rates[i],
            )
            for i in range(depth)
        )
        self._make_head(num_classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        init_linear(self)
        self.freeze()

    def _make_head(self, num_classes: int) -> None:
        width = self.representation_size or self.num_features
        self.norm = nn.LayerNorm(self.num_features, eps=self.norm_eps) if num_classes else None
        self.pre_logits = TokenLinear(self.num_features, width) if num_classes and self.representation_size else None
        self.head = TokenLinear(width, num_classes) if num_classes else None

    def block_tokens(self, x: Tensor) -> tuple[list[Tensor], list[Tensor | None], tuple[int, int]]:
        """Tokens ``[B, 1 + H*W, C]`` and token mask ``[B, H*W]`` after every block, and the size (H, W) of the map."""
        x = self.patch_embed(x)  # [B, C, H, W]
        size = (x.shape[2], x.shape[3])
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        tokens = self.pos_embed(tokens, size)
        found: list[Tensor] = []
        masks: list[Tensor | None] = []
        mask, kept = None, None
        blocks: Any = self.blocks
        for block in blocks:
            tokens, mask = self.run_block(block, tokens, size, mask, kept)
            kept = block.kept_tokens(size[0] * size[1]) or kept
            found.append(tokens)
            masks.append(mask)
        return found, masks, size

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        tokens, _, size = self.block_tokens(x)
        return [t[:, 1:].transpose(1, 2).unflatten(2, size) for t in tokens], tokens[-1]

    def forward_head(self, trunk: Tensor) -> Tensor:
        if self.norm is None or self.head is None:
            return trunk[:, 0]
        first = self.norm(trunk[:, 0])
        return self.head(first if self.pre_logits is None else self.pre_logits(first).tanh())

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        kept = (self.norm, self.pre_logits)
        self.num_classes = num_classes
        self._make_head(num_classes)
        if self.head is None:
            return
        init_linear(self.head)
        if kept[0] is not None:
            self.norm, self.pre_logits = kept
        self.to(self.cls_token.device, self.cls_token.dtype)

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.patch_embed, self.pos_embed], *([b] for b in self.blocks)]

    def num_layers(self) -> int:
        return self.depth + 2

    def layer_id(self, name: str) -> int:
        if name.startswith(("patch_embed", "pos_embed", "cls_token")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else self.depth + 1


@register_model(task="classification", family="sparsifiner", input_size=224)
@variant(Sparsifiner)
def sparsifiner_s() -> dict[str, Any]:
    """Sparsifiner-S, each query keeps a quarter of the keys, 22.3 M parameters."""
    return {}
