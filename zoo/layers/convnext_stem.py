"""The convolutional stem of FAN-Hybrid: the first stages of a ConvNeXt, with the norm that its authors trained.

A ConvNet for the 2020s (CVPR 2022, arXiv 2201.03545), as in github.com/guoyongcs/TAPADL (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.drop_path import DropPath
from zoo.layers.mlp import Mlp
from zoo.layers.patch_conv import PatchConv
from zoo.layers.stages import drop_path_rates


class UnbiasedNorm(nn.Module):
    """Layer norm over the last dimension whose variance has the divisor C - 1.

    The authors' norm took this form wherever its input was not contiguous, which it was in all layers but the first;
    the published weights are for it.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class ConvNeXtBlock(nn.Module):
    """7 x 7 depth-wise convolution, norm, MLP, factor a channel, added to the input; ``[B, H, W, C]``.

    Args:
        dim: channels C.
        layer_scale: initial factor; 0 or less for none.
        mlp_ratio: hidden width of the MLP over C.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, layer_scale: float = 1e-6, mlp_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        self.conv_dw = DepthwiseConv(dim, 7)
        self.norm = UnbiasedNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.gamma = nn.Parameter(torch.full((dim,), float(layer_scale))) if layer_scale > 0 else None
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x)))
        return x + self.drop_path(y if self.gamma is None else y * self.gamma)


class ConvNeXtStage(nn.Module):
    """Norm and 2 x 2 convolution of stride 2 (not in the first stage), then blocks; ``[B, H, W, C]``."""

    def __init__(self, in_dim: int | None, dim: int, rates: Sequence[float], layer_scale: float, drop_remainder: bool):
        super().__init__()
        self.norm = UnbiasedNorm(in_dim) if in_dim else None
        self.conv = PatchConv(in_dim, dim, 2, drop_remainder) if in_dim else None
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, layer_scale, drop_path=r) for r in rates)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None and self.conv is not None:
            x = self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return x


class ConvNeXtStem(nn.Module):
    """Patches, norm, stages: ``[B, C, H, W] -> [B, H', W', dims[-1]]``, a stride of ``patch_size`` doubled each stage.

    Args:
        in_chans: channels of the image.
        depths: blocks of each stage.
        dims: widths of the stages (further ones are not used).
        patch_size: side of the patches.
        layer_scale: initial factor of the blocks' residuals; 0 or less for none.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        drop_remainder: leave out rows and columns that make no whole patch rather than pad with zeros.

    Raises:
        ValueError: no stage, or one without a width.
    """

    def __init__(
        self,
        in_chans: int = 3,
        depths: Sequence[int] = (3, 3),
        dims: Sequence[int] = (128, 256),
        patch_size: int = 4,
        layer_scale: float = 1e-6,
        drop_path_rate: float = 0.0,
        drop_remainder: bool = False,
    ):
        super().__init__()
        if len(dims) < len(depths) or not depths:
            raise ValueError(f"dims={dims} and depths={depths}: accepted are one or more stages, each with a width")
        self.conv = PatchConv(in_chans, dims[0], patch_size, drop_remainder)
        self.norm = nn.LayerNorm(dims[0], eps=1e-6)
        rates = drop_path_rates(drop_path_rate, list(depths))
        self.stages = nn.ModuleList(
            ConvNeXtStage(dims[i - 1] if i else None, dims[i], rates[i], layer_scale, drop_remainder)
            for i in range(len(depths))
        )
        self.out_dim = dims[len(depths) - 1]
        self.stride = patch_size * 2 ** (len(depths) - 1)
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(m.weight, std=0.02)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        for stage in self.stages:
            x = stage(x)
        return x
