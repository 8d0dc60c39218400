"""Two plain hosts into which any mixer goes by config: `ViT` (one scale) and `Pyramid` (four stages).

ViT: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021), arXiv:2010.11929; with the softmax mixer it is that
model. Pyramid: four stages with an overlapping convolutional stem and overlapping downsampling, as in PVTv2
(arXiv:2106.13797), and a convolutional position encoding in each block (arXiv:2102.10882). It is nobody's published
model: its use is that mixers can be compared with all else equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.layers.class_attention import ClassAttention
from zoo.layers.context_broadcast import ContextBroadcast
from zoo.layers.drop_path import DropPath
from zoo.layers.mlp import Mlp
from zoo.layers.padding import pad_chw, to_pair
from zoo.layers.position_encoding import ConvPositionEncoding
from zoo.layers.position_table import PositionTable
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import build_mixer
from zoo.registry import register_model, variant


class HostBlock(nn.Module):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``.

    Args:
        dim: channels C.
        num_heads: heads of the mixer.
        mixer: spec of the mixer.
        input_size: height and width of the map, for mixers with tables of that size.
        mlp_ratio: hidden channels of the MLP over C.
        drop_path: probability of dropping a branch for an image, in training.
        position_encoding: add a convolutional position encoding first.
        prefix: whether :meth:`forward` gets prefix tokens; a mixer that defines none gets class attention beside it.
        context_broadcast: add the mean over all tokens at the end of the MLP, "cb" or "cb_s" (arXiv:2210.08457).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mixer: Any,
        input_size: tuple[int, int],
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        position_encoding: bool = False,
        prefix: bool = False,
        context_broadcast: str | None = None,
    ):
        super().__init__()
        self.cpe = ConvPositionEncoding(dim) if position_encoding else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = build_mixer(mixer, dim, num_heads, input_size)
        self.class_attn = ClassAttention(dim, num_heads) if prefix and not self.attn.takes_prefix else None
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.broadcast = ContextBroadcast(dim, context_broadcast) if context_broadcast is not None else None
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else None

    def _mlp(self, x: Tensor, prefix: Tensor | None = None) -> Any:
        """The MLP's branch of the map, with ``prefix`` the pair of map and prefix."""
        x = self.mlp(self.norm2(x))
        if prefix is None:
            return x if self.broadcast is None else self.broadcast(x)
        prefix = self.mlp(self.norm2(prefix))
        return (x, prefix) if self.broadcast is None else self.broadcast(x, prefix)

    def _keep(self, x: Tensor) -> Tensor | float:
        """What a branch is multiplied by, ``[B, 1, 1, 1]``: drop path, the same for map and prefix."""
        if self.drop_path is None or not self.training:
            return 1.0
        return self.drop_path(x.new_ones(x.shape[0], 1, 1, 1))

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Any:
        """Map ``[B, H, W, C]`` (and prefix ``[B, P, C]``) to the same."""
        if self.cpe is not None:
            x = self.cpe(x)
        if prefix is None:
            x = x + self._scaled(self.attn(self.norm1(x)), self._keep(x))
            return x + self._scaled(self._mlp(x), self._keep(x))
        keep = self._keep(x)
        if self.class_attn is None:
            y, p = self.attn(self.norm1(x), self.norm1(prefix))
            x = x + self._scaled(y, keep)
        else:
            # The token reads the map after it was mixed, so that the last block's mixer counts.
            x = x + self._scaled(self.attn(self.norm1(x)), keep)
            p = self.class_attn(self.norm1(prefix), self.norm1(x))
        prefix = prefix + self._scaled(p, keep)
        keep = self._keep(x)
        y, p = self._mlp(x, prefix)
        return x + self._scaled(y, keep), prefix + self._scaled(p, keep)

    @staticmethod
    def _scaled(branch: Tensor, keep: Tensor | float) -> Tensor:
        if not isinstance(keep, Tensor):
            return branch
        return branch * (keep if branch.ndim == 4 else keep[:, 0])


def _init_linear(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


class _Host(Backbone):
    """What both hosts share: the classifier."""

    def _make_head(self, num_classes: int) -> None:
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6) if num_classes else None
        self.head = TokenLinear(self.num_features, num_classes) if num_classes else None

    def forward_head(self, trunk: Tensor) -> Tensor:
        """Logits, or without a classifier the pooled features, from what :meth:`forward_trunk` gave."""
        pooled = self.pool(trunk)
        return pooled if self.head is None else self.head(pooled)

    def pool(self, trunk: Any) -> Tensor:
        """``[B, num_features]``."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        norm, like = self.norm, next(self.parameters())
        self.num_classes = num_classes
        self._make_head(num_classes)
        if self.head is None or self.norm is None:
            return
        self.norm = norm if norm is not None else self.norm.to(like.device, like.dtype)
        _init_linear(self.head.to(like.device, like.dtype))


class ViT(_Host):
    """Plain vision transformer with any mixer; every block is a stage of stride ``patch_size``.

    Args:
        in_chans: image channels.
        num_classes: classes, or 0 for features.
        input_size: image size that position tables are made for; any other size runs too.
        patch_size: pixels along the side of a token.
        dim: channels.
        depth: blocks.
        num_heads: attention heads.
        mixer: spec of the mixer.
        class_token: classify by a class token rather than by the mean over the map.
        mlp_ratio: hidden channels of the MLPs over ``dim``.
        drop_path_rate: stochastic depth of the last block; from 0 it grows linearly over the blocks.
        out_indices: blocks whose maps are given; the last by default.
        frozen_stages: patch embedding (0) and blocks (1 ...) that are not trained; -1 for none.
        context_broadcast: add the mean over all tokens at the end of each MLP, "cb" or "cb_s" (arXiv:2210.08457).
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        input_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mixer: Any = "softmax",
        class_token: bool = False,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        context_broadcast: str | None = None,
    ):
        super().__init__()
        self._describe(
            [dim] * depth,
            [patch_size] * depth,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=(depth - 1,) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
        )
        height, width = to_pair(input_size, "input_size")
        grid = (-(-height // patch_size), -(-width // patch_size))
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.patch_size = patch_size
        self.patch_embed = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.pos_embed = PositionTable(grid, dim)
        # Without a classifier nothing reads the token, so there is none.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token and num_classes else None
        self.no_decay = ("cls_token",) if self.cls_token is not None else ()
        self.blocks = nn.ModuleList(
            HostBlock(
                dim,
                num_heads,
                mixer,
                grid,
                mlp_ratio,
                rate,
                prefix=self.cls_token is not None,
                context_broadcast=context_broadcast,
            )
            for rate in rates
        )
        self._make_head(num_classes)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        _init_linear(self)
        self.freeze()

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Any]:
        x = self.patch_embed(pad_chw(x, (self.patch_size, self.patch_size)))
        x = self.pos_embed(x.permute(0, 2, 3, 1))  # [B, H, W, C] from here on
        prefix = None if self.cls_token is None else self.cls_token.expand(x.shape[0], -1, -1)
        maps = []
        for block in self.blocks:
            if prefix is None:
                x = self.run_block(block, x)
            else:
                x, prefix = self.run_block(block, x, prefix)
            maps.append(x.permute(0, 3, 1, 2))
        return maps, x if prefix is None else prefix

    def pool(self, trunk: Tensor) -> Tensor:
        if trunk.ndim == 3:  # the class token
            return trunk[:, 0] if self.norm is None else self.norm(trunk[:, 0])
        return trunk.mean((1, 2)) if self.norm is None else self.norm(trunk).mean((1, 2))

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.patch_embed, self.pos_embed], *([b] for b in self.blocks)]

    def layer_id(self, name: str) -> int:
        if name.startswith(("patch_embed", "pos_embed", "cls_token")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else self.num_layers() - 1

    def num_layers(self) -> int:
        return len(self.blocks) + 2


class ConvStem(nn.Module):
    """Overlapping 3x3 convolutions, each of stride 2, to a channels-last map: ``[B, 3, H, W] -> [B, H/s, W/s, C]``."""

    def __init__(self, in_chans: int, dim: int, stride: int):
        super().__init__()
        if stride not in (2, 4):
            raise ValueError(f"stem_stride={stride}: accepted are 4 and 2")
        steps = stride.bit_length() - 1
        widths = [in_chans] + [dim // 2] * (steps - 1) + [dim]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, padding=1) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.LayerNorm(b, eps=1e-6) for b in widths[1:])
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            y = norm(conv(x).permute(0, 2, 3, 1))  # [B, H, W, C]
            if i + 1 == len(self.convs):
                break
            x = self.act(y).permute(0, 3, 1, 2)
        return y


class OverlappingDownsample(nn.Module):
    """3x3 convolution of stride 2 and LayerNorm: ``[B, H, W, C_in] -> [B, H/2, W/2, C_out]`` (rounded up)."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, 2, padding=1)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Pyramid(_Host):
    """Four stages with any mixer, or one for each stage.

    Args:
        in_chans: image channels.
        num_classes: classes, or 0 for features.
        input_size: image size that mixers with tables are made for; any other size runs too.
        depths: blocks of each stage.
        dims: channels of each stage.
        num_heads: heads of each stage.
        mixer: spec of the mixer, or one for each stage.
        mlp_ratio: hidden channels of the MLPs over the stage's.
        stem_stride: 4, or 2 for small images.
        drop_path_rate: stochastic depth of the last block; from 0 it grows linearly over the blocks.
        out_indices: stages whose maps are given; all by default.
        frozen_stages: stem (0) and stages (1 ...) that are not trained; -1 for none.
        context_broadcast: add the mean over all tokens at the end of each MLP, "cb" or "cb_s" (arXiv:2210.08457).
    """

    stages: Any  # ModuleList of ModuleLists of HostBlock

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        input_size: int | tuple[int, int] = 224,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mixer: Any = ("window", "window", "softmax", "softmax"),
        mlp_ratio: float = 4.0,
        stem_stride: int = 4,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        context_broadcast: str | None = None,
    ):
        super().__init__()
        stages = len(dims)
        mixers = list(mixer) if isinstance(mixer, (list, tuple)) else [mixer] * stages
        if not len(depths) == len(num_heads) == len(mixers) == stages:
            raise ValueError(
                f"depths={depths}, dims={dims}, num_heads={num_heads} and mixer={mixer!r} must have one entry a stage"
            )
        strides = [stem_stride * 2**i for i in range(stages)]
        self._describe(
            dims,
            strides,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        height, width = to_pair(input_size, "input_size")
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.stem = ConvStem(in_chans, dims[0], stem_stride)
        self.downsamples = nn.ModuleList(OverlappingDownsample(a, b) for a, b in zip(dims, dims[1:]))
        self.stages = nn.ModuleList()
        for depth, dim, heads, spec, stride in zip(depths, dims, num_heads, mixers, strides):
            grid = (-(-height // stride), -(-width // stride))
            self.stages.append(
                nn.ModuleList(
                    HostBlock(
                        dim,
                        heads,
                        spec,
                        grid,
                        mlp_ratio,
                        next(rates),
                        position_encoding=True,
                        context_broadcast=context_broadcast,
                    )
                    for _ in range(depth)
                )
            )
        self._make_head(num_classes)
        _init_linear(self)
        self.freeze()

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.stem(x)  # [B, H, W, C] from here on
        maps = []
        for i, blocks in enumerate(self.stages):
            if i:
                x = self.downsamples[i - 1](x)
            for block in blocks:
                x = self.run_block(block, x)
            maps.append(x.permute(0, 3, 1, 2))
        return maps, x

    def pool(self, trunk: Tensor) -> Tensor:
        return trunk.mean((1, 2)) if self.norm is None else self.norm(trunk.mean((1, 2)))

    def stage_modules(self) -> list[list[nn.Module]]:
        stages = [[self.stages[0]], *([d, s] for d, s in zip(self.downsamples, self.stages[1:]))]
        return [[self.stem], *stages]

    def layer_id(self, name: str) -> int:
        parts = name.split(".")
        if parts[0] == "stem":
            return 0
        if parts[0] not in ("stages", "downsamples"):
            return self.num_layers() - 1
        # A downsampling goes with the first block after it.
        stage = int(parts[1]) + (parts[0] == "downsamples")
        return 1 + sum(len(s) for s in self.stages[:stage]) + (int(parts[2]) if parts[0] == "stages" else 0)

    def num_layers(self) -> int:
        return sum(len(s) for s in self.stages) + 2


@register_model(task="classification", family="vit", input_size=32)
@variant(ViT)
def vit_nano() -> dict[str, Any]:
    """For small images (32 x 32): patches of 4 x 4, 0.7 M parameters."""
    return dict(input_size=32, patch_size=4, dim=96, depth=6, num_heads=3)


@register_model(task="classification", family="vit", input_size=224)
@variant(ViT)
def vit_tiny() -> dict[str, Any]:
    """ViT-Ti/16."""
    return dict(dim=192, num_heads=3)


@register_model(task="classification", family="vit", input_size=224)
@variant(ViT)
def vit_small() -> dict[str, Any]:
    """ViT-S/16."""
    return dict(dim=384, num_heads=6)


@register_model(task="classification", family="vit", input_size=224)
@variant(ViT)
def vit_base() -> dict[str, Any]:
    """ViT-B/16."""
    return dict(dim=768, num_heads=12)


@register_model(task="classification", family="pyramid", input_size=32)
@variant(Pyramid)
def pyramid_nano() -> dict[str, Any]:
    """For small images (32 x 32): stem of stride 2, 0.8 M parameters."""
    return dict(
        input_size=32,
        depths=(1, 1, 2, 1),
        dims=(32, 64, 96, 128),
        num_heads=(1, 2, 3, 4),
        stem_stride=2,
        mixer="softmax",
    )


@register_model(task="classification", family="pyramid", input_size=224)
@variant(Pyramid)
def pyramid_tiny() -> dict[str, Any]:
    """Four stages of 64 to 512 channels, 12 blocks."""
    return dict(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), num_heads=(2, 4, 8, 16))


@register_model(task="classification", family="pyramid", input_size=224)
@variant(Pyramid)
def pyramid_small() -> dict[str, Any]:
    """Four stages of 64 to 512 channels, 23 blocks."""
    return dict(depths=(3, 4, 13, 3), dims=(64, 128, 320, 512), num_heads=(2, 4, 10, 16))
