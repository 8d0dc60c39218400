"""Residual Attention Network: residual units whose features are weighed by masks of an hourglass beside them.

Residual Attention Network for Image Classification (CVPR 2017, arXiv 1704.06904). No authors' implementation was
compared; this follows the paper's text, figure 2 and table 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.layers.drop_path import DropPath
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_linear import TokenLinear
from zoo.registry import register_model, variant


class ResidualUnit(nn.Module):
    """Pre-activation bottleneck (arXiv 1603.05027): ``[B, in_chans, H, W] -> [B, out_chans, H/stride, W/stride]``.

    Args:
        in_chans, out_chans: channels; a quarter of the latter in between.
        stride: of the 3x3 convolution.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1, drop_path: float = 0.0):
        super().__init__()
        inner = max(1, out_chans // 4)
        self.bn1 = nn.BatchNorm2d(in_chans)
        self.conv1 = nn.Conv2d(in_chans, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_chans, 1, bias=False)
        changes = stride > 1 or in_chans != out_chans
        self.shortcut = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False) if changes else None
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return x + self.drop_path(self.conv3(F.relu(self.bn3(y))))


class SoftMask(nn.Module):
    """The mask branch: down, then up again with skips, then two 1x1 convolutions: ``[B, C, H, W]`` to the same size.

    Args:
        dim: channels C.
        levels: how often the map is max-pooled (3x3, stride 2).
        units: residual units r after each pooling, and before each interpolation.
        activation: of the mask: "mixed" (sigmoid), "channel" (L2 norm over channels) or "spatial" (standardised over
            the map, then sigmoid), the paper's f1, f2 and f3.
    """

    def __init__(self, dim: int, levels: int, units: int = 1, activation: str = "mixed"):
        super().__init__()
        if activation not in ("mixed", "channel", "spatial"):
            raise ValueError(f"activation={activation!r}: accepted are 'mixed', 'channel' and 'spatial'")

        def stack() -> nn.Sequential:
            return nn.Sequential(*(ResidualUnit(dim, dim) for _ in range(units)))

        self.activation = activation
        self.down = nn.ModuleList(stack() for _ in range(levels))
        self.skips = nn.ModuleList(ResidualUnit(dim, dim) for _ in range(levels - 1))
        self.up = nn.ModuleList(stack() for _ in range(levels))
        self.out = nn.Sequential(
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        sizes, skips = [], []
        for level, down in enumerate(self.down):
            sizes.append(x.shape[2:])
            x = down(F.max_pool2d(x, 3, 2, 1))
            if level < len(self.skips):
                skips.append(self.skips[level](x))
        for level in reversed(range(len(self.up))):
            x = self.up[level](x)
            x = F.interpolate(x, size=sizes[level], mode="bilinear", align_corners=True)
            if level:
                x = x + skips[level - 1]
        return self._activate(self.out(x))

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "channel":
            return F.normalize(x, dim=1)
        if self.activation == "spatial":
            variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
            x = (x - mean) * (variance + 1e-5).rsqrt()
        return x.sigmoid()


class AttentionModule(nn.Module):
    """``p`` residual units, then ``(1 + mask) * trunk``, then ``p`` units: ``[B, C, H, W]`` to the same (eq. 3).

    Args:
        dim: channels C.
        levels: poolings of the mask branch.
        p, t, r: residual units before and after; of the trunk; of the mask branch between poolings.
        residual: ``(1 + mask) * trunk`` (attention residual learning) rather than ``mask * trunk``.
        activation: of the mask; see :class:`SoftMask`.
    """

    def __init__(
        self,
        dim: int,
        levels: int,
        p: int = 1,
        t: int = 2,
        r: int = 1,
        residual: bool = True,
        activation: str = "mixed",
    ):
        super().__init__()
        self.before = nn.Sequential(*(ResidualUnit(dim, dim) for _ in range(p)))
        self.trunk = nn.Sequential(*(ResidualUnit(dim, dim) for _ in range(t)))
        self.mask = SoftMask(dim, levels, r, activation)
        self.after = nn.Sequential(*(ResidualUnit(dim, dim) for _ in range(p)))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        mask = self.mask(x)
        return self.after((1 + mask if self.residual else mask) * self.trunk(x))


class ResidualAttentionNetwork(Backbone):
    """Residual Attention Network: three stages of a unit and attention modules, a fourth of units.

    Args:
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        width: channels of the stem; 4, 8, 16 and 32 times as many in the stages.
        modules: attention modules of the first three stages.
        last_units: residual units of the fourth stage.
        levels: poolings of the masks in the first three stages.
        p, t, r, residual, activation: see :class:`AttentionModule`.
        stem_stride: 4 (7x7 convolution and pooling), or 1 for small images (3x3 convolution, the paper's for CIFAR).
        drop_path_rate: stochastic depth of the last residual unit outside the attention modules, which have none; it
            grows linearly over those units.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: table 2 and section 3.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        width: int = 64,
        modules: Sequence[int] = (1, 1, 1),
        last_units: int = 3,
        levels: Sequence[int] = (3, 2, 1),
        p: int = 1,
        t: int = 2,
        r: int = 1,
        residual: bool = True,
        activation: str = "mixed",
        stem_stride: int = 4,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        if stem_stride not in (1, 4):
            raise ValueError(f"stem_stride={stem_stride}: accepted are 4 and 1")
        modules, levels = per_stage("modules", modules, 3), per_stage("levels", levels, 3)
        if min(levels) < 1 or min(p, t, r, last_units) < 1:
            raise ValueError(f"levels={levels}, p={p}, t={t}, r={r}, last_units={last_units}: accepted are from 1")
        channels = [width * 4 * 2**i for i in range(4)]
        self._describe(
            channels,
            [stem_stride * 2**i for i in range(4)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        kernel, stride = (7, 2) if stem_stride == 4 else (3, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, width, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1) if stem_stride == 4 else nn.Identity(),
        )
        rates = drop_path_rates(drop_path_rate, [1, 1, 1, last_units])
        self.stages = nn.ModuleList()
        before = width
        for i, dim in enumerate(channels):
            units: list[nn.Module] = [ResidualUnit(before, dim, 2 if i else 1, rates[i][0])]
            if i < 3:
                units += [AttentionModule(dim, levels[i], p, t, r, residual, activation) for _ in range(modules[i])]
            else:
                units += [ResidualUnit(dim, dim, 1, rate) for rate in rates[i][1:]]
            self.stages.append(nn.ModuleList(units))
            before = dim
        self.depths = tuple(len(list(stage.children())) for stage in self.stages)
        self._make_head(num_classes)
        self.freeze()

    def _make_head(self, num_classes: int) -> None:
        self.norm = nn.BatchNorm2d(self.num_features) if num_classes else None
        self.head = TokenLinear(self.num_features, num_classes) if num_classes else None

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for stage in self.stages:
            for unit in stage.children():
                x = self.run_block(unit, x)
            maps.append(x)
        return maps, x

    def forward_head(self, trunk: Tensor) -> Tensor:
        if self.head is None or self.norm is None:
            return trunk.mean((2, 3))
        return self.head(F.relu(self.norm(trunk)).mean((2, 3)))

    def masks(self, x: Tensor) -> list[Tensor]:
        """The mask ``[B, C, H, W]`` of each attention module, in order, for images ``[B, in_chans, H, W]``."""
        self.check_image(x)
        x, masks = self.stem(x), []
        for stage in self.stages:
            for unit in stage.children():
                if isinstance(unit, AttentionModule):
                    masks.append(unit.mask(unit.before(x)))
                x = unit(x)
        return masks

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        norm, like = self.norm, next(self.parameters())
        self.num_classes = num_classes
        self._make_head(num_classes)
        if self.head is None or self.norm is None:
            return
        self.norm = norm if norm is not None else self.norm.to(like.device, like.dtype).train(self.training)
        self.head.to(like.device, like.dtype)

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.stem], *([stage] for stage in self.stages)]

    def num_layers(self) -> int:
        return sum(self.depths) + 2

    def layer_id(self, name: str) -> int:
        part, *rest = name.split(".")
        if part == "stem":
            return 0
        return sum(self.depths[: int(rest[0])]) + int(rest[1]) + 1 if part == "stages" else self.num_layers() - 1


@register_model(task="classification", family="residual_attention", input_size=32)
@variant(ResidualAttentionNetwork)
def residual_attention_nano() -> dict[str, Any]:
    """For small images (32 x 32): narrow, one trunk unit, stem of stride 1."""
    return dict(width=8, modules=(1, 1, 1), last_units=1, levels=(2, 2, 1), t=1, stem_stride=1)


@register_model(task="classification", family="residual_attention", input_size=224)
@variant(ResidualAttentionNetwork)
def residual_attention_56() -> dict[str, Any]:
    """Attention-56."""
    return dict(modules=(1, 1, 1))


@register_model(task="classification", family="residual_attention", input_size=224)
@variant(ResidualAttentionNetwork)
def residual_attention_92() -> dict[str, Any]:
    """Attention-92."""
    return dict(modules=(1, 2, 3))
