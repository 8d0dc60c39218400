"""The usual transformer block: a mixer and an MLP, each normalised before and added to its input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zoo.layers.drop_path import DropPath
from zoo.layers.mlp import Mlp


class PreNormBlock(nn.Module):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``, over the last dimension.

    Args:
        dim: channels C.
        mixer: the token mixer.
        mlp_ratio: hidden channels of the MLP over C.
        drop_path: probability of dropping a branch for an image, in training.
        norm_eps: epsilon of the LayerNorms.
    """

    def __init__(
        self, dim: int, mixer: nn.Module, mlp_ratio: float = 4.0, drop_path: float = 0.0, norm_eps: float = 1e-6
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def mix(self, x: Tensor, *context: Any) -> Tensor:
        """Call the mixer; ``context`` is what :meth:`forward` got beside x."""
        return self.attn(x, *context)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        x = x + self.drop_path(self.mix(self.norm1(x), *context))
        return x + self.drop_path(self.mlp(self.norm2(x)))
