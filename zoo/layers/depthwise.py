"""A depth-wise convolution on channels-last maps."""

from __future__ import annotations

from torch import Tensor, nn


class DepthwiseConv(nn.Conv2d):
    """Depth-wise convolution of a map ``[B, H, W, C]``, same size out, zeros outside the map.

    On a contiguous channels-last map the permutations are views and nothing is copied.

    Args:
        dim: channels C.
        kernel_size: an odd number.

    Raises:
        ValueError: an even or non-positive kernel size, which would change the size of the map.
    """

    def __init__(self, dim: int, kernel_size: int):
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} of a depth-wise convolution: accepted are odd numbers from 1")
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # [B, C, H, W] in between

    def flops(self, positions: int) -> int:
        """Multiply-accumulates over ``positions`` positions."""
        return positions * self.weight.numel()
