"""A plain vision transformer with a class token, linear attention in some blocks and softmax in the others.

DeiT (ICML 2021, arXiv 2012.12877); ``agent_deit.py`` and ``inline_deit.py`` make the papers' networks of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.backbones.hybrid_base import init_linear, patch_chain, replaced_head
from zoo.layers.classifier_head import ClassifierHead
from zoo.layers.padding import to_pair
from zoo.layers.patch_conv import PatchConv
from zoo.layers.pre_norm_block import PreNormBlock
from zoo.layers.stages import drop_path_rates
from zoo.layers.token_positions import TokenPositions
from zoo.mixers.softmax import SoftmaxAttention


class HybridDeiTBlock(PreNormBlock):
    """A block over ``[B, 1 + H*W, C]``, class token first, called with the size (H, W) of the map."""

    attn: Any

    def mix(self, x: Tensor, *context: Any) -> Tensor:
        if isinstance(self.attn, SoftmaxAttention):
            return self.attn(x[:, None])[:, 0]  # softmax attention knows no positions: a map of one row
        return self.attn.forward_tokens(x, context[0], prefix=1)


class HybridDeiT(Backbone):
    """Patches, class token, positions, blocks; every block is a stage of stride ``patch_size``.

    Args:
        img_size: image size that positions are made for, a number or (height, width).
        patch_size: pixels along the side of a token.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dim: channels.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLPs over the width.
        qkv_bias: bias of the projections to queries, keys and values.
        norm_eps: epsilon of all norms.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        drop_remainder: leave out rows and columns that make no whole patch rather than pad with zeros.
        out_indices: blocks whose maps are given; the last by default.
        frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.
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
        self.depth = depth
        self.norm_eps = norm_eps
        self.grid = patch_chain(to_pair(img_size, "img_size"), [patch_size], drop_remainder)[0]
        self.patch_embed = PatchConv(in_chans, embed_dim, patch_size, drop_remainder)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.no_decay = ("cls_token",)
        self.pos_embed = TokenPositions(self.grid, embed_dim, prefix=1)
        rates = drop_path_rates(drop_path_rate, [depth])[0]
        self.blocks = nn.ModuleList(
            HybridDeiTBlock(
                embed_dim, self.block_mixer(i, embed_dim, num_heads, qkv_bias), mlp_ratio, rates[i], norm_eps
            )
            for i in range(depth)
        )
        self.head = ClassifierHead(embed_dim, num_classes, norm_eps) if num_classes else None
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        init_linear(self)
        self.freeze()

    def block_mixer(self, block: int, dim: int, num_heads: int, qkv_bias: bool) -> nn.Module:
        """The mixer of a block: softmax attention, or one with ``forward_tokens(tokens, size, prefix)``."""
        raise NotImplementedError

    def block_tokens(self, x: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Tokens ``[B, 1 + H*W, C]`` after every block, class token first, and the size (H, W) of their map."""
        x = self.patch_embed(x)  # [B, C, H, W]
        size = (x.shape[2], x.shape[3])
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        tokens = self.pos_embed(tokens, size)
        found = []
        for block in self.blocks:
            tokens = self.run_block(block, tokens, size)
            found.append(tokens)
        return found, size

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        tokens, size = self.block_tokens(x)
        return [t[:, 1:].transpose(1, 2).unflatten(2, size) for t in tokens], tokens[-1]

    def forward_head(self, trunk: Tensor) -> Tensor:
        return trunk[:, 0] if self.head is None else self.head(trunk[:, :1])

    def reset_classifier(self, num_classes: int) -> None:
        self.head = replaced_head(self, self.head, num_classes, self.norm_eps)
        self.num_classes = num_classes

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.patch_embed, self.pos_embed], *([b] for b in self.blocks)]

    def num_layers(self) -> int:
        return self.depth + 2

    def layer_id(self, name: str) -> int:
        if name.startswith(("patch_embed", "pos_embed", "cls_token")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else self.depth + 1
