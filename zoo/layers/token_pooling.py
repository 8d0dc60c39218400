"""Token-aware average pooling: each position averages as wide a neighbourhood as it asks for.

Robustifying Token Attention for Vision Transformers (ICCV 2023, arXiv 2303.11126, section 3.1, eq. 1-2). Authors' code:
github.com/guoyongcs/TAPADL (MIT).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dilated_mean(x: Tensor, dilation: int) -> Tensor:
    """Mean of the 3 x 3 positions ``dilation`` apart on ``[B, C, H, W]``; zeros outside the map count."""
    H, W, d = x.shape[2], x.shape[3], dilation
    x = F.pad(x, (d, d, d, d))
    x = x[:, :, :H] + x[:, :, d : d + H] + x[:, :, 2 * d : 2 * d + H]
    return (x[..., :W] + x[..., d : d + W] + x[..., 2 * d : 2 * d + W]) / 9


class TokenAwarePooling(nn.Module):
    """Mix of each position itself and of means around it, with weights predicted for the position; ``[B, H, W, C]``.

    Scale 0 is the position itself, scale i the mean of 3 x 3 positions i apart.

    Args:
        dim: channels C.
        num_scales: number of scales K.

    Raises:
        ValueError: no scale.
    """

    def __init__(self, dim: int, num_scales: int = 4):
        super().__init__()
        if num_scales < 1:
            raise ValueError(f"num_scales={num_scales}: accepted are numbers from 1")
        self.num_scales = num_scales
        self.conv1 = nn.Conv2d(dim, num_scales, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(num_scales)
        self.conv2 = nn.Conv2d(num_scales, num_scales, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        planes = x.permute(0, 3, 1, 2)  # [B, C, H, W]
        share = self.conv2(self.bn(self.conv1(planes))).softmax(1)  # [B, K, H, W]
        out = share[:, :1] * planes
        for i in range(1, self.num_scales):
            out = out + share[:, i : i + 1] * dilated_mean(planes, i)
        return out.permute(0, 2, 3, 1)

    def pooling_matrix(self, x: Tensor) -> Tensor:
        """What the result is made of: ``[B, H*W, H*W]`` with ``out = matrix @ x``, for a map ``[B, H, W, C]``."""
        B, H, W, _ = x.shape
        share = self.conv2(self.bn(self.conv1(x.permute(0, 3, 1, 2)))).softmax(1).flatten(2)  # [B, K, N]
        unit = torch.eye(H * W, dtype=x.dtype, device=x.device).reshape(1, H * W, H, W)  # a channel for each position
        scales = [unit, *(dilated_mean(unit, i) for i in range(1, self.num_scales))]
        # [B, N, 1] * [N, N]: a row of the transposed planes belongs to the position that reads
        return sum(share[:, i, :, None] * s[0].flatten(1).T for i, s in enumerate(scales))

    def flops(self, tokens: int) -> int:
        """Multiply-accumulates for so many positions."""
        mixing = self.num_scales * self.conv1.in_channels
        return tokens * (self.conv1.weight.numel() + self.conv2.weight.numel() + mixing)
