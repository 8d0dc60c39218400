"""HaloNet and its relatives: ResNets in which blocked local attention replaces convolutions.

Scaling Local Self-Attention for Parameter Efficient Visual Backbones (CVPR 2021, arXiv 2103.12731). The authors
published no code; architectures and names are timm's (``timm.models.byoanet``, Apache-2.0), whose weights load.

What differs here: any image size runs (timm's needs whole blocks in every stage); the classifier is ``head``, what is
in front of it ``final_conv``, and ``num_classes=0`` has neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.base import Backbone
from zoo.layers.drop_path import DropPath
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.halo import HaloAttention
from zoo.registry import register_model, variant

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}
STEMS = ("7x7", "3x3", "tiered")


def whole_groups(channels: float, least: float = 0.9) -> int:
    """The multiple of 8 nearest to ``channels``, the next one where that is below ``least`` times ``channels``."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < least * channels else rounded


class ConvNormAct(nn.Module):
    """Convolution without bias, BatchNorm, activation (None for none); ``[B, C, H, W]``, sizes rounded up."""

    def __init__(self, a: int, b: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: str | None = "relu"):
        super().__init__()
        self.conv = nn.Conv2d(a, b, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(b)
        self.act = ACTIVATIONS[act]() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class SqueezeExcitation(nn.Module):
    """Channels weighed by a small network on their means (arXiv 1709.01507)."""

    def __init__(self, dim: int, ratio: float):
        super().__init__()
        hidden = whole_groups(dim * ratio, least=0.0)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class EfficientChannelAttention(nn.Module):
    """Channels weighed by a convolution along their means (arXiv 1910.03151, eq. 12 for its size)."""

    def __init__(self, dim: int):
        super().__init__()
        size = int((math.log2(dim) + 1) / 2)
        size = max(3, size if size % 2 else size + 1)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))[:, None]  # [B, 1, C]
        return x * self.conv(means).sigmoid()[:, 0, :, None, None]


class Bottleneck(nn.Module):
    """1x1 convolution, then a 3x3 convolution or halo attention, then 1x1, added to the input.

    Args:
        in_dim, dim: channels in and out.
        mid_dim: channels inside.
        stride: of the middle layer.
        attention: arguments of :class:`~zoo.mixers.halo.HaloAttention` for the middle; None for a convolution.
        group_size: channels of a group of the convolution; 0 for one group.
        channel_attention: None, "se" or "eca", after the convolution.
        se_ratio: hidden channels of "se" over ``mid_dim``.
        act: "relu" or "silu".
        act_last: activation after the sum.
        shortcut: whether an input of another shape is brought to the output's by a convolution; otherwise such a block
            has no residual.
        drop_path: probability of dropping the branch for an image, in training.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        mid_dim: int,
        stride: int,
        attention: dict[str, Any] | None,
        group_size: int = 0,
        channel_attention: str | None = None,
        se_ratio: float = 1 / 16,
        act: str = "relu",
        act_last: bool = True,
        shortcut: bool = True,
        drop_path: float = 0.0,
    ):
        super().__init__()
        same = in_dim == dim and stride == 1
        self.residual = same or shortcut
        self.shortcut = ConvNormAct(in_dim, dim, 1, stride, act=None) if shortcut and not same else nn.Identity()
        self.conv1_1x1 = ConvNormAct(in_dim, mid_dim, act=act)
        if attention is None:
            if group_size and mid_dim % group_size:
                raise ValueError(f"group_size={group_size}: accepted are divisors of the block's {mid_dim} channels")
            self.conv2_kxk = ConvNormAct(mid_dim, mid_dim, 3, stride, mid_dim // (group_size or mid_dim), act)
            self.self_attn = self.post_attn = None
            gates = {
                "se": lambda: SqueezeExcitation(mid_dim, se_ratio),
                "eca": lambda: EfficientChannelAttention(mid_dim),
            }
            self.attn: nn.Module = gates[channel_attention]() if channel_attention else nn.Identity()
        else:
            self.self_attn = HaloAttention(mid_dim, stride=stride, proj=False, **attention)
            self.post_attn = nn.BatchNorm2d(mid_dim)
        self.mid_act = ACTIVATIONS[act]()
        self.conv3_1x1 = ConvNormAct(mid_dim, dim, act=None)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.act = ACTIVATIONS[act]() if act_last else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W] -> [B, C, H/stride, W/stride]`` (rounded up)."""
        y = self.conv1_1x1(x)
        if self.self_attn is None or self.post_attn is None:
            y = self.attn(self.conv2_kxk(y))
        else:
            y = self.self_attn(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            y = self.mid_act(self.post_attn(y))
        y = self.drop_path(self.conv3_1x1(y))
        return self.act(y + self.shortcut(x) if self.residual else y)


class Stem(nn.Module):
    """One convolution ("7x7", "3x3") or three 3x3 ("tiered"), perhaps max pooling: stride 4, or 2 for "3x3" alone."""

    def __init__(self, in_chans: int, dim: int, kind: str, pool: bool, act: str):
        super().__init__()
        widths = [3 * dim // 8, dim // 2, dim] if kind == "tiered" else [dim]
        kernel = 7 if kind == "7x7" else 3
        self.convs = nn.ModuleList()
        for i, (a, b) in enumerate(zip([in_chans, *widths], widths)):
            last = i > 0 and i + 1 == len(widths) and not pool
            self.convs.append(ConvNormAct(a, b, kernel, 2 if i == 0 or last else 1, act=act))
        self.pool = nn.MaxPool2d(3, 2, padding=1) if pool else nn.Identity()
        self.stride = 4 if pool or kind == "tiered" else 2

    def forward(self, x: Tensor) -> Tensor:
        # channels-last throughout: attention reads the maps so
        x = x.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            x = conv(x)
        return self.pool(x)


class HaloNet(Backbone):
    """ResNet whose bottlenecks hold halo attention where ``attention`` says so.

    Args:
        in_chans: image channels.
        num_classes: classes, or 0 for features.
        depths, dims: blocks and channels of each stage.
        attention: for each stage the numbers of the blocks with attention.
        strides: of the first block of each stage.
        ratio: channels inside a block over those it gives out, one number or one a stage.
        ratio_of_input: the ratio is to the channels that a block is given.
        stem, stem_dim, stem_pool: "7x7", "3x3" or "tiered"; its channels; whether max pooling follows.
        num_heads: attention heads, one number or one a stage.
        block_size, halo_size: see :class:`~zoo.mixers.halo.HaloAttention`.
        qk_head_dim: channels of a head of queries and keys; None for ``qk_ratio`` times the values' (all heads together
            in multiples of 8).
        group_size: channels of a group of the 3x3 convolutions; 0 for one group.
        channel_attention, se_ratio: "se", "eca" or None behind the 3x3 convolutions; hidden channels of "se".
        act: "relu" or "silu".
        act_last: activation after the residual sums.
        shortcut: False for no residual where the shape changes.
        final_dim: channels of a last 1x1 convolution before the mean; 0 for none.
        zero_init_last: start the residual branches at 0.
        drop_path_rate: stochastic depth of the last block; from 0 it grows linearly over the blocks.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: arguments for the stages differ in length, or an unknown stem, activation or channel attention.
    """

    stages: Any  # ModuleList of ModuleLists of Bottleneck

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 2, 2),
        dims: Sequence[int] = (256, 512, 1024, 2048),
        attention: Sequence[Sequence[int]] = ((), (), (1,), (0, 1)),
        strides: Sequence[int] = (1, 2, 2, 2),
        ratio: float | Sequence[float] = 0.25,
        ratio_of_input: bool = False,
        stem: str = "tiered",
        stem_dim: int = 64,
        stem_pool: bool = True,
        num_heads: int | Sequence[int] = 8,
        block_size: int = 8,
        halo_size: int = 3,
        qk_head_dim: int | None = None,
        qk_ratio: float = 1.0,
        group_size: int = 0,
        channel_attention: str | None = None,
        se_ratio: float = 1 / 16,
        act: str = "relu",
        act_last: bool = True,
        shortcut: bool = True,
        final_dim: int = 0,
        zero_init_last: bool = True,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        n = len(depths)
        if not n == len(dims) == len(attention) == len(strides):
            raise ValueError(
                f"depths={depths}, dims={dims}, attention={attention} and strides={strides} must have one entry a stage"
            )
        accepted = dict(stem=STEMS, act=tuple(ACTIVATIONS), channel_attention=(None, "se", "eca"))
        for name, value in dict(stem=stem, act=act, channel_attention=channel_attention).items():
            if value not in accepted[name]:
                raise ValueError(f"{name}={value!r}: accepted are {', '.join(map(repr, accepted[name]))}")
        ratios, heads = per_stage("ratio", ratio, n), per_stage("num_heads", num_heads, n)
        self.stem = Stem(in_chans, stem_dim, stem, stem_pool, act)
        total = [self.stem.stride * math.prod(strides[: i + 1]) for i in range(n)]
        self._describe(
            dims,
            total,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        self.depths = tuple(depths)
        self.final_dim, self.act_name = final_dim, act
        rates = drop_path_rates(drop_path_rate, depths)
        before = stem_dim
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims):
            blocks = nn.ModuleList()
            for j in range(depths[i]):
                mid = whole_groups((before if ratio_of_input else dim) * ratios[i])
                qk = qk_head_dim or whole_groups(mid * qk_ratio) // heads[i]
                halo = dict(num_heads=heads[i], block_size=block_size, halo_size=halo_size, qk_head_dim=qk)
                blocks.append(
                    Bottleneck(
                        before,
                        dim,
                        mid,
                        strides[i] if j == 0 else 1,
                        halo if j in attention[i] else None,
                        group_size,
                        channel_attention,
                        se_ratio,
                        act,
                        act_last,
                        shortcut,
                        rates[i][j],
                    )
                )
                before = dim
            self.stages.append(blocks)
        self._make_head()
        self._init_weights(zero_init_last)
        self.freeze()

    def _make_head(self) -> None:
        self.final_conv: nn.Module = nn.Identity()
        if self.num_classes and self.final_dim:
            self.final_conv = ConvNormAct(self.stage_channels[-1], self.final_dim, act=self.act_name)
        self.num_features = self.final_dim if self.num_classes and self.final_dim else self.stage_channels[-1]
        self.head = TokenLinear(self.num_features, self.num_classes) if self.num_classes else None

    def _init_weights(self, zero_init_last: bool) -> None:
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                fan_out = m.kernel_size[0] * m.kernel_size[1] * m.out_channels // m.groups
                nn.init.normal_(m.weight, std=(2 / fan_out) ** 0.5)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
            elif isinstance(m, Bottleneck) and zero_init_last and m.residual:
                nn.init.zeros_(m.conv3_1x1.bn.weight)
        self._init_head()

    def _init_head(self) -> None:
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        x = self.stem(x)
        for blocks in self.stages:
            for block in blocks:
                x = self.run_block(block, x)
            maps.append(x)
        return maps, x

    def forward_head(self, trunk: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.final_conv(trunk), 1).flatten(1)
        return pooled if self.head is None else self.head(pooled)

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        old, like = self.final_conv, next(self.parameters())
        self.num_classes = num_classes
        self._make_head()
        if isinstance(old, ConvNormAct) and num_classes:
            self.final_conv = old
        self._init_head()
        for part in (self.final_conv, self.head):
            if part is not None:
                part.to(like.device, like.dtype).train(self.training)

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.stem], *([blocks] for blocks in self.stages)]

    def num_layers(self) -> int:
        return sum(self.depths) + 2

    def layer_id(self, name: str) -> int:
        part, *rest = name.split(".")
        if part == "stem":
            return 0
        return sum(self.depths[: int(rest[0])]) + int(rest[1]) + 1 if part == "stages" else self.num_layers() - 1


@register_model(task="classification", family="halonet", input_size=32)
@variant(HaloNet)
def halonet_nano() -> dict[str, Any]:
    """For small images (32 x 32): stem of stride 2, blocks of 4 x 4 with a halo of 1."""
    return dict(
        depths=(1, 2, 2),
        dims=(64, 128, 256),
        attention=((), (1,), (0, 1)),
        strides=(1, 2, 2),
        stem="3x3",
        stem_dim=32,
        stem_pool=False,
        num_heads=4,
        block_size=4,
        halo_size=1,
        zero_init_last=False,
    )


@register_model(task="classification", family="halonet", input_size=256)
@variant(HaloNet)
def halonet_h1() -> dict[str, Any]:
    """HaloNet-H1 of the paper as timm has it: attention in every block, 8.1 M parameters."""
    return dict(
        depths=(3, 3, 10, 3),
        dims=(64, 128, 256, 512),
        attention=(range(3), range(3), range(10), range(3)),
        ratio=1.0,
        stem="7x7",
    )


@register_model(task="classification", family="halonet", input_size=256)
@variant(HaloNet)
def halonet26t() -> dict[str, Any]:
    """ResNet-26-T with halo attention in the last two stages, 12.5 M parameters."""
    return dict(halo_size=2)


@register_model(task="classification", family="halonet", input_size=256)
@variant(HaloNet)
def sehalonet33ts() -> dict[str, Any]:
    """ResNet-33-TS with squeeze-and-excitation and halo attention, 13.7 M parameters."""
    return dict(
        depths=(2, 3, 3, 2),
        dims=(256, 512, 1024, 1536),
        attention=((), (2,), (2,), (0, 1)),
        ratio=(0.25, 0.25, 0.25, 0.333),
        stem_pool=False,
        act="silu",
        channel_attention="se",
        final_dim=1280,
    )


@register_model(task="classification", family="halonet", input_size=256)
@variant(HaloNet)
def halonet50ts() -> dict[str, Any]:
    """ResNet-50-TS with halo attention, 22.7 M parameters."""
    return dict(
        depths=(3, 4, 6, 3),
        attention=((), (3,), (1, 3, 5), (1,)),
        num_heads=(8, 4, 8, 8),
        act="silu",
    )


@register_model(task="classification", family="halonet", input_size=256)
@variant(HaloNet)
def eca_halonext26ts() -> dict[str, Any]:
    """ResNeXt-26-TS with efficient channel attention and halo attention, 10.8 M parameters."""
    return dict(halo_size=2, qk_head_dim=16, group_size=16, act="silu", channel_attention="eca")


@register_model(task="classification", family="halonet", input_size=224)
@variant(HaloNet)
def haloregnetz_b() -> dict[str, Any]:
    """RegNet-Z-B with squeeze-and-excitation and halo attention, 11.7 M parameters."""
    return dict(
        depths=(2, 6, 12, 2),
        dims=(48, 96, 192, 288),
        attention=((), (), (3, 7, 11), (0, 1)),
        strides=(2, 2, 2, 2),
        ratio=3.0,
        ratio_of_input=True,
        stem="3x3",
        stem_dim=32,
        stem_pool=False,
        block_size=7,
        halo_size=2,
        qk_ratio=0.33,
        group_size=16,
        channel_attention="se",
        se_ratio=0.25,
        act="silu",
        act_last=False,
        shortcut=False,
        final_dim=1536,
    )
