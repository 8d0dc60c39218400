"""The reduced map that keys and values of PVT come from (Pyramid Vision Transformer, arXiv:2102.12122, eq. 1-3)."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.layers.padding import pad_hwc


class SpatialReduction(nn.Module):
    """Convolution of size and stride ``ratio``, then LayerNorm: ``[B, H, W, C] -> [B, H // ratio, W // ratio, C]``.

    Rows and columns that make no whole patch are left out; a map smaller than ``ratio`` is zero-padded to it.

    Args:
        dim: channels C.
        ratio: positions of the map, along each axis, for one of the reduced map.
    """

    def __init__(self, dim: int, ratio: int):
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv2d(dim, dim, ratio, ratio)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] < self.ratio or x.shape[2] < self.ratio:
            x = pad_hwc(x, (self.ratio, self.ratio))
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def positions(self, height: int, width: int) -> int:
        """Positions of the reduced map."""
        if height < self.ratio or width < self.ratio:
            height, width = height + -height % self.ratio, width + -width % self.ratio
        return (height // self.ratio) * (width // self.ratio)
