"""Position encodings of a map by functions of its coordinates: learned Fourier features and rotations.

Learnable Fourier Features for Multi-Dimensional Spatial Positional Encoding (arXiv 2106.02795, algorithm 1), and two
more of the Continuous Thought Machine (arXiv 2505.05522; github.com/SakanaAI/continuous-thought-machines, Apache-2.0).
Each is called with a map ``[B, C, H, W]``, of which only the size is read, and gives ``[1, dim, H, W]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear


class LearnableFourierPosition(nn.Module):
    """An MLP of ``[cos(W r), sin(W r)] / sqrt(features)`` of the place r = (x, y), each 0 to 1.

    Args:
        dim: channels out.
        gamma: W starts normal with standard deviation ``gamma ** -2``.
        features: width of the Fourier features.
        hidden: width of the MLP before its gated linear unit.
    """

    def __init__(self, dim: int, gamma: float = 1 / 2.5, features: int = 256, hidden: int = 128):
        super().__init__()
        self.features = features
        self.frequencies = TokenLinear(2, features // 2, bias=False)
        self.mlp = nn.Sequential(
            TokenLinear(features, hidden), nn.GLU(), TokenLinear(hidden // 2, dim), nn.LayerNorm(dim)
        )
        nn.init.normal_(self.frequencies.weight, std=gamma**-2)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        like = self.frequencies.weight
        # a side of one place is at 0
        rows = torch.arange(H, device=x.device, dtype=like.dtype) / max(H - 1, 1)
        columns = torch.arange(W, device=x.device, dtype=like.dtype) / max(W - 1, 1)
        place = torch.stack([columns.expand(H, W), rows[:, None].expand(H, W)], dim=-1)  # [H, W, 2]
        angle = self.frequencies(place)
        fourier = torch.cat([angle.cos(), angle.sin()], dim=-1) / math.sqrt(self.features)  # [H, W, features]
        return self.mlp(fourier).permute(2, 0, 1)[None]


class MultiFourierPosition(nn.Module):
    """A learned average (softmax of weights) of ten :class:`LearnableFourierPosition` of gamma 1 to 0.1."""

    def __init__(self, dim: int):
        super().__init__()
        gammas = [1.0 - 0.1 * i for i in range(10)]
        self.encodings = nn.ModuleList(LearnableFourierPosition(dim, gamma) for gamma in gammas)
        self.weights = nn.Parameter(torch.ones(len(gammas)))

    def forward(self, x: Tensor) -> Tensor:
        encodings = torch.stack([e(x) for e in self.encodings])  # [10, 1, dim, H, W]
        return (encodings * self.weights.softmax(0)[:, None, None, None, None]).sum(0)


class RotationalPosition(nn.Module):
    """A linear map of a learned vector turned by the row's and by the column's angle, 0 to 180 degrees over a side.

    The authors turn by the width's angles along both sides, which is the same on square maps, the only ones that they
    accept.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.start_vector = nn.Parameter(torch.tensor([0.0, 1.0]))
        self.projection = TokenLinear(4, dim)

    def _turned(self, size: int, like: Tensor) -> Tensor:
        """``[size, 2]``"""
        angle = torch.deg2rad(torch.linspace(0, 180, size, device=like.device)).to(like.dtype)
        c, s = angle.cos(), angle.sin()
        a, b = self.start_vector
        return torch.stack([c * a - s * b, s * a + c * b], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        rows, columns = self._turned(H, self.start_vector), self._turned(W, self.start_vector)
        both = torch.cat([rows[:, None].expand(H, W, 2), columns[None].expand(H, W, 2)], dim=-1)  # [H, W, 4]
        return self.projection(both).permute(2, 0, 1)[None]
