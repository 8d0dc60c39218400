"""Efficient local attention (ELA): a gate for each row and one for each column, from the means along them.

ELA: Efficient Local Attention for Deep Convolutional Neural Networks (arXiv 2403.01123). No authors' implementation was
compared; this follows the paper's equations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.mixers.base import Mixer
from zoo.registry import register_mixer

#: kernel, channels a group of the convolution, groups of the norm
VERSIONS = {"tiny": (5, 1, 32), "base": (7, 1, 16), "small": (5, 8, 16), "large": (7, 8, 16)}


class StripGate(nn.Module):
    """``sigmoid(GN(conv1d(z)))`` of a strip of means ``[B, C, L]``, the same size out.

    Args:
        dim: channels C.
        kernel_size: an odd number.
        group: channels a group of the convolution; made to divide C.
        norm_groups: groups of the norm; made to divide C.
    """

    def __init__(self, dim: int, kernel_size: int, group: int, norm_groups: int):
        super().__init__()
        groups = math.gcd(dim, max(1, dim // group))
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
        self.norm = nn.GroupNorm(math.gcd(dim, norm_groups), dim)

    def forward(self, strip: Tensor) -> Tensor:
        n = self.norm
        # the function rather than the module, which refuses to normalise a single value in training
        return torch.sigmoid(torch.group_norm(self.conv(strip), n.num_groups, n.weight, n.bias, n.eps))


@register_mixer(name="ela")
class EfficientLocalAttention(Mixer):
    """``y = x * g_h * g_w``: the map times a gate of its row and channel and one of its column and channel.

    ``g_h = sigmoid(GN(F_h(mean over the columns of x)))`` and ``g_w`` likewise, with 1-D convolutions ``F``.

    Args:
        dim: channels C.
        num_heads: without effect but that it must divide ``dim``; there are no heads.
        version: "tiny", "base", "small" or "large": kernels of 5, 7, 5, 7; depth-wise convolutions or (small, large)
            groups of 8 channels; norms of 32, 16, 16, 16 groups, or as many as divide C and that.
        shared: one convolution and norm for rows and columns.

    Raises:
        ValueError: unknown version.

    Source: eq. 4-8 and section 3.3.
    """

    growth = "linear"

    def __init__(self, dim: int, num_heads: int = 1, version: str = "base", shared: bool = False):
        super().__init__(dim, num_heads)
        if version not in VERSIONS:
            raise ValueError(f"version={version!r}: accepted are {', '.join(map(repr, VERSIONS))}")
        self.rows = StripGate(dim, *VERSIONS[version])
        self.columns = None if shared else StripGate(dim, *VERSIONS[version])

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``; raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        row, column = self.gates(x)
        return x * row[:, :, None] * column[:, None]

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gates of rows ``[B, H, C]`` and of columns ``[B, W, C]``."""
        columns = self.rows if self.columns is None else self.columns
        return self.rows(x.mean(2).transpose(1, 2)).transpose(1, 2), columns(x.mean(1).transpose(1, 2)).transpose(1, 2)

    def flops(self, height: int, width: int) -> int:
        """Both means, both products and the convolutions of the strips."""
        columns = self.rows if self.columns is None else self.columns
        strips = height * self.rows.conv.weight.numel() + width * columns.conv.weight.numel()
        return 4 * height * width * self.dim + strips
