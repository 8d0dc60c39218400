"""RF-DETR's neck: maps of one stride to levels of several, each of them mixed from all maps.

LW-DETR: A Transformer Replacement to YOLO for Real-Time Detection (arXiv:2406.03459), section 3.1; the blocks are
YOLOv8's C2f.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.layers.layer_norm_2d import LayerNorm2d

#: level -> size over that of the maps
SCALES = {"P3": 2.0, "P4": 1.0, "P5": 0.5}


class ConvNorm(nn.Module):
    """Convolution without bias, norm and activation.

    Args:
        dim, out_dim: channels.
        kernel: pixels a side.
        stride: of the convolution.
        act: class of the activation.
        layer_norm: normalise over channels; over the batch otherwise.
        eps: of the norm over channels.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel: int,
        stride: int = 1,
        act: type[nn.Module] = nn.SiLU,
        layer_norm: bool = True,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, kernel, stride, kernel // 2, bias=False)
        self.bn: nn.Module = LayerNorm2d(out_dim, eps) if layer_norm else nn.BatchNorm2d(out_dim)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, out_dim, H / stride, W / stride]``."""
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions; arguments as :class:`ConvNorm`."""

    def __init__(self, dim: int, layer_norm: bool = True, eps: float = 1e-6):
        super().__init__()
        self.cv1 = ConvNorm(dim, dim, 3, layer_norm=layer_norm, eps=eps)
        self.cv2 = ConvNorm(dim, dim, 3, layer_norm=layer_norm, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``."""
        return self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Half of the channels goes through bottlenecks one after the other, and all results are mixed.

    Args:
        dim, out_dim: channels.
        blocks: bottlenecks.
        layer_norm, eps: see :class:`ConvNorm`.
        expansion: channels of a half over ``out_dim``.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        blocks: int = 3,
        layer_norm: bool = True,
        eps: float = 1e-6,
        expansion: float = 0.5,
    ):
        super().__init__()
        half = int(out_dim * expansion)
        self.cv1 = ConvNorm(dim, 2 * half, 1, layer_norm=layer_norm, eps=eps)
        self.cv2 = ConvNorm((2 + blocks) * half, out_dim, 1, layer_norm=layer_norm, eps=eps)
        self.m = nn.ModuleList(Bottleneck(half, layer_norm, eps) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, dim, H, W] -> [B, out_dim, H, W]``."""
        parts = list(self.cv1(x).chunk(2, dim=1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, dim=1))


class MultiScaleProjector(nn.Module):
    """Levels of a pyramid from maps of one stride.

    Args:
        channels: channels of the maps.
        dim: channels of every level.
        levels: of "P3" (twice the size of the maps), "P4" (the same) and "P5" (half), in this order.
        layer_norm, eps, expansion: see :class:`C2f`; the last norm of a level is over channels with 1e-6 in any case.
        blocks: bottlenecks of each level.

    Raises:
        ValueError: an unknown level, levels out of order, none at all.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        levels: Sequence[str] = ("P4",),
        layer_norm: bool = True,
        blocks: int = 3,
        eps: float = 1e-6,
        expansion: float = 0.5,
    ):
        super().__init__()
        if not levels or not set(levels) <= set(SCALES) or list(levels) != sorted(set(levels)):
            raise ValueError(f"levels={tuple(levels)}: accepted are {', '.join(SCALES)}, in this order")
        self.stages_sampling = nn.ModuleList()
        self.stages = nn.ModuleList()
        for level in levels:
            scale = SCALES[level]
            resample: list[nn.Module] = []
            for c in channels:
                if scale > 1:
                    resample.append(nn.Sequential(nn.ConvTranspose2d(c, c // 2, 2, 2)))
                elif scale < 1:
                    resample.append(nn.Sequential(ConvNorm(c, c, 3, 2, nn.ReLU, layer_norm, eps)))
                else:
                    resample.append(nn.Sequential())
            total = sum(c // 2 if scale > 1 else c for c in channels)
            self.stages_sampling.append(nn.ModuleList(resample))
            self.stages.append(
                nn.Sequential(C2f(total, dim, blocks, layer_norm, eps, expansion), LayerNorm2d(dim, 1e-6))
            )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``[B, C_i, H, W]`` to levels ``[B, dim, H * scale, W * scale]``."""
        found = []
        for resample, mix in zip(self.stages_sampling, self.stages):
            assert isinstance(resample, nn.ModuleList)
            found.append(mix(torch.cat([r(x) for r, x in zip(resample, maps)], dim=1)))
        return found
