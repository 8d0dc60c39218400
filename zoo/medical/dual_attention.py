"""Position and channel attention of a map, and the convolutions around them.

Dual Attention Network for Scene Segmentation (arXiv 1809.02983), eq. 1-4, as Multi-scale self-guided attention uses it
(arXiv 1906.02849). Authors' code: github.com/sinAshish/Multi-Scale-Attention (no licence file).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo_kernels.dense_attention import dense_attention


class PositionAttention(nn.Module):
    """x + gamma softmax(q k^T) v between all places of a map; the products are not scaled.

    Args:
        dim: channels, at least 8; queries and keys have an eighth of them.

    Raises:
        ValueError: fewer channels.
    """

    def __init__(self, dim: int):
        super().__init__()
        if dim < 8:
            raise ValueError(f"dim={dim}: accepted are at least 8 channels, of which queries have an eighth")
        self.query_conv = nn.Conv2d(dim, dim // 8, 1)
        self.key_conv = nn.Conv2d(dim, dim // 8, 1)
        self.value_conv = nn.Conv2d(dim, dim, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, dim, H, W]`` to the same shape."""
        # [B, c, H, W] -> [B, 1, H*W, c]
        q, k, v = (f(x).flatten(2).transpose(1, 2)[:, None] for f in (self.query_conv, self.key_conv, self.value_conv))
        out = dense_attention(q, k, v, scale=1.0)[:, 0].transpose(1, 2)  # [B, dim, H*W]
        return self.gamma * out.reshape(x.shape) + x


class ChannelAttention(nn.Module):
    """x + gamma softmax(max_j e_ij - e_ij) x between channels, e = x x^T: the unlike attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        tokens = x.flatten(2)[:, None]  # [B, 1, C, H*W]: the channels are the tokens
        # A softmax is the same for max - e and for -e.
        out = dense_attention(tokens, tokens, tokens, scale=-1.0)
        return self.gamma * out.reshape(x.shape) + x


def _unit(in_chans: int, out_chans: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(in_chans, out_chans, kernel, padding=kernel // 2), nn.BatchNorm2d(out_chans), nn.PReLU()]


class GuidedAttention(nn.Sequential):
    """Convolution unit from 2 dim to dim channels, position or channel attention, convolution unit.

    Args:
        dim: channels of the output.
        position: position attention; else channel attention.
    """

    def __init__(self, dim: int, position: bool = True):
        attention: nn.Module = PositionAttention(dim) if position else ChannelAttention()
        super().__init__(*_unit(2 * dim, dim, 3), attention, *_unit(dim, dim, 3))


class FuseConvs(nn.Sequential):
    """Two 3x3 convolution units and a 1x1 one, which ends in a softmax over the channels if ``softmax``."""

    def __init__(self, in_chans: int, out_chans: int, softmax: bool = False):
        last = _unit(out_chans, out_chans, 1)
        if softmax:
            last[-1] = nn.Softmax2d()
        super().__init__(*_unit(in_chans, out_chans, 3), *_unit(out_chans, out_chans, 3), *last)
