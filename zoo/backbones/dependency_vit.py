"""DependencyViT: a vision transformer of reversed attention, in which a tree of dependencies appears.

Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention (CVPR 2023, arXiv 2304.03282). The
authors' repository (github.com/dingmyu/DependencyViT, MIT) has no code; this follows the paper's description, and its
page says what had to be chosen.

How much a token sends is the product of its message controllers in all blocks so far. Tokens that send little are
leaves: DependencyViT-Lite drops them on the way, and gives a dropped token in a dense map the mean of its parents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.backbones.hybrid_base import init_linear
from zoo.layers.arborescence import maximum_arborescence
from zoo.layers.drop_path import DropPath
from zoo.layers.mlp import Mlp
from zoo.layers.padding import to_pair
from zoo.layers.patch_conv import PatchConv
from zoo.layers.stages import drop_path_rates
from zoo.layers.token_linear import TokenLinear
from zoo.layers.token_positions import TokenPositions
from zoo.mixers.reversed_attention import ReversedAttention
from zoo.registry import register_model, variant


class DependencyBlock(nn.Module):
    """Reversed attention and an MLP, each normalised before and added to its input.

    Args:
        dim: channels C.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP over C.
        qkv_bias: bias of the projections to queries, keys and values.
        drop_path: probability of dropping a branch for an image, in training.
        norm_eps: epsilon of the norms.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, drop_path: float, norm_eps: float = 1e-6
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = ReversedAttention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, message: Tensor, masks: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the block.

        Args:
            x: tokens ``[B, N, C]``.
            message: ``[B, N, 1]``, how much the tokens have sent so far, between 0 and 1.
            masks: give the soft dependency mask too.

        Returns:
            Tokens, the message times this block's controller, and ``[B, N, N]`` (row parent, column child) or None.
        """
        normed = self.norm1(x)
        message = message * self.attn.messages(normed)
        mask = self.attn.weights(normed, message).sum(1) if masks else None
        x = x + self.drop_path(self.attn.mix(normed, message))
        return x + self.drop_path(self.mlp(self.norm2(x))), message, mask


class MessageHead(nn.Module):
    """Norm, mean over the tokens weighted by their messages, linear layer."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc = TokenLinear(dim, num_classes)

    def forward(self, tokens: Tensor, message: Tensor) -> Tensor:
        """``[B, num_classes]`` of tokens ``[B, N, C]`` and messages ``[B, N, 1]``."""
        return self.fc(weighted_mean(self.norm(tokens), message))


def weighted_mean(tokens: Tensor, message: Tensor) -> Tensor:
    """``[B, C]``, the mean of ``[B, N, C]`` with weights ``[B, N, 1]``."""
    return (tokens * message).sum(1) / message.sum(1).clamp_min(torch.finfo(message.dtype).tiny)


class DependencyViT(Backbone):
    """DependencyViT, and DependencyViT-Lite with ``prune_after``; every block is a stage of stride ``patch_size``.

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
        prune_after: numbers of blocks, from 1, after which tokens are dropped.
        prune_ratio: share of all tokens of the image that is dropped each time.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        out_indices: blocks whose maps are given; the last by default.
        frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: ``prune_after`` or ``prune_ratio`` outside what is accepted.

    Source: the paper's reversed attention block, dynamic pooling and DependencyViT-Lite; its page says what was chosen.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        prune_after: Sequence[int] = (),
        prune_ratio: float = 0.16,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        if list(prune_after) != sorted(set(prune_after)) or any(not 1 <= i <= depth for i in prune_after):
            raise ValueError(f"prune_after={prune_after!r}: accepted are increasing numbers of blocks, 1 to {depth}")
        if prune_ratio < 0 or (prune_after and prune_ratio * len(prune_after) >= 1):
            raise ValueError(
                f"prune_ratio={prune_ratio}: accepted are shares that leave tokens {len(prune_after)} times"
            )
        self._describe(
            [embed_dim] * depth,
            [patch_size] * depth,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=(depth - 1,) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
        )
        self.prune_after = tuple(prune_after)
        self.prune_ratio = prune_ratio
        height, width = to_pair(img_size, "img_size")
        grid = (-(-height // patch_size), -(-width // patch_size))
        rates = drop_path_rates(drop_path_rate, [depth])[0]
        self.patch_embed = PatchConv(in_chans, embed_dim, patch_size)
        self.pos_embed = TokenPositions(grid, embed_dim)
        self.blocks = nn.ModuleList(DependencyBlock(embed_dim, num_heads, mlp_ratio, qkv_bias, rate) for rate in rates)
        self.head = MessageHead(embed_dim, num_classes) if num_classes else None
        init_linear(self)
        for module in self.modules():
            if isinstance(module, ReversedAttention):
                module.open_controller()
        self.freeze()

    def kept(self, tokens: int, times: int) -> int:
        """How many of an image's ``tokens`` are left when they have been pruned so many ``times``."""
        return max(1, tokens - round(self.prune_ratio * times * tokens))

    def run(
        self, x: Tensor, maps: bool = False, masks: bool = False
    ) -> tuple[list[Tensor], Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Run all blocks.

        Args:
            x: images ``[B, 3, H, W]``.
            maps: give the map after every block, places of dropped tokens filled.
            masks: give the soft dependency masks.

        Returns:
            Maps ``[B, C, H', W']``; the tokens left ``[B, N', C]`` and their messages ``[B, N', 1]``; for each block
            the pair of its tokens' places ``[B, N'']`` in the map, row-major, and their mask ``[B, N'', N'']``.
        """
        x = self.patch_embed(x)  # [B, C, H', W']
        size = (x.shape[2], x.shape[3])
        N = size[0] * size[1]
        x = self.pos_embed(x.flatten(2).transpose(1, 2), size)
        message = x.new_ones(x.shape[0], N, 1)
        places = torch.arange(N, device=x.device).expand(x.shape[0], N)
        refills: list[Tensor] = []  # [B, tokens before, tokens after] of each pruning
        found_maps: list[Tensor] = []
        found_masks: list[tuple[Tensor, Tensor]] = []
        for number, block in enumerate(self.blocks, 1):
            prune = number in self.prune_after
            x, message, mask = self.run_block(block, x, message, masks or (maps and prune))
            if masks:
                found_masks.append((places, mask))
            if maps:
                full = x
                for refill in reversed(refills):
                    full = refill @ full
                found_maps.append(full.transpose(1, 2).unflatten(2, size))
            if prune:
                count = self.kept(N, self.prune_after.index(number) + 1)
                chosen = message[..., 0].topk(count, dim=1).indices.sort(dim=1).values  # [B, count]
                if maps:
                    refills.append(_refill(mask, chosen).to(x.dtype))
                x = x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))
                message = message.gather(1, chosen[..., None])
                places = places.gather(1, chosen)
        return found_maps, x, message, found_masks

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        maps, tokens, message, _ = self.run(x, maps=True)
        return maps, (tokens, message)

    def forward_classifier(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``; unlike :meth:`forward_trunk` this fills no maps."""
        self.check_image(x)
        _, tokens, message, _ = self.run(x)
        return self.forward_head((tokens, message))

    def forward_head(self, trunk: tuple[Tensor, Tensor]) -> Tensor:
        return weighted_mean(*trunk) if self.head is None else self.head(*trunk)

    @torch.no_grad()
    def dependencies(self, x: Tensor) -> Tensor:
        """The soft dependency mask of images, the mean over the blocks: ``[B, N, N]``, row parent, column child.

        Tokens are places of the map, row-major; a dropped token counts in the blocks that it was in.
        """
        self.check_image(x)
        masks = self.run(x, masks=True)[3]
        B, N = masks[0][0].shape
        total = masks[0][1].new_zeros(B, N, N)
        for places, mask in masks:
            rows = total.new_zeros(B, places.shape[1], N).scatter(
                2, places[:, None].expand(-1, places.shape[1], -1), mask
            )
            total.scatter_add_(1, places[..., None].expand(-1, -1, N), rows)
        return total / len(masks)

    @torch.no_grad()
    def dependency_tree(self, x: Tensor) -> Tensor:
        """The tree of each image: ``[B, N]`` int64 on the CPU, the parent of each place of the map, -1 for the root.

        The root is the token that receives most; the tree is the one with the largest product of the dependencies
        (Chu-Liu/Edmonds), which takes up to a second for some hundred tokens.
        """
        mask = self.dependencies(x).double().cpu()
        received = mask.sum(2) - mask.diagonal(dim1=1, dim2=2)
        scores = mask.clamp_min(torch.finfo(torch.float64).tiny).log().numpy()
        trees = [maximum_arborescence(s, int(r)) for s, r in zip(scores, received.argmax(1))]
        return torch.stack([torch.from_numpy(t) for t in trees])

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        like = next(self.parameters())
        norm = None if self.head is None else self.head.norm
        self.num_classes = num_classes
        self.head = None
        if num_classes:
            head = MessageHead(self.num_features, num_classes).to(like.device, like.dtype)
            init_linear(head)
            head.norm = head.norm if norm is None else norm
            self.head = head

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.patch_embed, self.pos_embed], *([b] for b in self.blocks)]

    def num_layers(self) -> int:
        return len(self.blocks) + 2

    def layer_id(self, name: str) -> int:
        if name.startswith(("patch_embed", "pos_embed")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else self.num_layers() - 1


def _refill(mask: Tensor, chosen: Tensor) -> Tensor:
    """A matrix ``[B, N, K]`` from K kept tokens to all N: kept ones are copied, others are the mean of their parents.

    Args:
        mask: ``[B, N, N]``, row parent, column child; the weights of the means.
        chosen: ``[B, K]``, the kept tokens.
    """
    B, N, _ = mask.shape
    parents = mask.gather(1, chosen[..., None].expand(-1, -1, N)).transpose(1, 2)  # [B, child, kept parent]
    parents = parents / parents.sum(-1, keepdim=True).clamp_min(torch.finfo(parents.dtype).tiny)
    copies = torch.zeros_like(parents).scatter(1, chosen[:, None], 1.0)  # [B, N, K], one 1 in a column
    return torch.where(copies.sum(-1, keepdim=True) > 0, copies, parents)


@register_model(task="classification", family="dependencyvit", input_size=32)
@variant(DependencyViT)
def dependencyvit_nano() -> dict[str, Any]:
    """For small images (32 x 32): patches of 4 x 4, four blocks."""
    return dict(img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=4)


@register_model(task="classification", family="dependencyvit", input_size=224)
@variant(DependencyViT)
def dependencyvit_tiny() -> dict[str, Any]:
    """DependencyViT-T: 12 blocks of 192 channels, 12 heads."""
    return dict(embed_dim=192)


@register_model(task="classification", family="dependencyvit", input_size=224)
@variant(DependencyViT)
def dependencyvit_small() -> dict[str, Any]:
    """DependencyViT-S: 12 blocks of 384 channels, 12 heads."""
    return dict(embed_dim=384)


@register_model(task="classification", family="dependencyvit", input_size=224)
@variant(DependencyViT)
def dependencyvit_lite_tiny() -> dict[str, Any]:
    """DependencyViT-Lite-T: the tiny network, 16 % of the tokens dropped after blocks 2, 5, 8 and 11."""
    return dict(embed_dim=192, prune_after=(2, 5, 8, 11))


@register_model(task="classification", family="dependencyvit", input_size=224)
@variant(DependencyViT)
def dependencyvit_lite_small() -> dict[str, Any]:
    """DependencyViT-Lite-S: the small network, 16 % of the tokens dropped after blocks 2, 5, 8 and 11."""
    return dict(embed_dim=384, prune_after=(2, 5, 8, 11))
