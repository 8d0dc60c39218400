"""Swin's patch merging (Swin Transformer, arXiv:2103.14030, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.layers.padding import pad_hwc
from zoo.layers.token_linear import TokenLinear


class PatchMerging(nn.Module):
    """2 x 2 neighbours concatenated, normalised, projected: ``[B, C, H, W] -> [B, H/2, W/2, 2C]`` (rounded up).

    An odd map is zero-padded at the bottom and right. Neighbours are concatenated column by column.

    Args:
        dim: channels C.
        norm_eps: epsilon of the LayerNorm.
    """

    def __init__(self, dim: int, norm_eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=norm_eps)
        self.reduction = TokenLinear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_hwc(x.permute(0, 2, 3, 1), (2, 2))
        B, H, W, C = x.shape
        x = x.reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5)  # [B, H/2, W/2, column, row, C]
        return self.reduction(self.norm(x.reshape(B, H // 2, W // 2, 4 * C)))
