"""Positions told by a depth-wise convolution (conditional position encoding, arXiv:2102.10882)."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.layers.depthwise import DepthwiseConv


class ConvPositionEncoding(nn.Module):
    """``x + act(depthwise_conv(x))`` on ``[B, H, W, C]``.

    Args:
        dim: channels C.
        kernel_size: odd size of the kernel.
        act: apply GELU to the convolution's output.
    """

    def __init__(self, dim: int, kernel_size: int = 3, act: bool = False):
        super().__init__()
        self.proj = DepthwiseConv(dim, kernel_size)
        self.act = nn.GELU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.proj(x))
