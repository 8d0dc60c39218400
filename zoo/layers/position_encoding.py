"""Positions told by a depth-wise convolution (conditional position encoding, arXiv:2102.10882)."""

from __future__ import annotations

from torch import Tensor, nn


class ConvPositionEncoding(nn.Module):
    """``x + act(depthwise_conv(x))`` on ``[B, H, W, C]``.

    Args:
        dim: channels C.
        kernel_size: odd size of the kernel.
        act: apply GELU to the convolution's output.
    """

    def __init__(self, dim: int, kernel_size: int = 3, act: bool = False):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.act = nn.GELU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # The permuted view is what torch calls channels-last: neither direction copies.
        return x + self.act(self.proj(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
