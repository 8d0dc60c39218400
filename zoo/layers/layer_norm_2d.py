"""LayerNorm over the channels of a channels-first map."""

from __future__ import annotations

from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Normalise ``[B, C, H, W]`` over C; parameters and result as ``nn.LayerNorm`` on the channels-last view."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
