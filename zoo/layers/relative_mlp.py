"""A position bias computed by a small network from log-spaced relative coordinates.

Swin Transformer V2 (arXiv 2111.09883, eq. 3-4) in the form of TransNeXt (arXiv 2311.17132, section 3.1.3), whose keys
may be pooled. Coordinates are scaled by the map that the network was trained on, so that it extrapolates to others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear


def pool_bounds(size: int, pooled: int) -> list[tuple[int, int]]:
    """First and last-but-one-past position of each cell that adaptive average pooling makes of ``size`` positions."""
    return [(i * size // pooled, -(-(i + 1) * size // pooled)) for i in range(pooled)]


def axis_offsets(size: int, pooled: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Offsets query - key along an axis of ``size`` queries and ``pooled`` keys at the centres of their cells.

    Centres are whole or half positions, so the offsets lie on a grid.

    Returns:
        offsets ``[U]`` in positions, ascending, and the row of each (query, key) in them, ``[size, pooled]`` int64.
    """
    doubled = [first + end - 1 for first, end in pool_bounds(size, pooled)]  # twice the centres
    step = 2 if len({c % 2 for c in doubled}) == 1 else 1
    low, high = -max(doubled), 2 * (size - 1) - min(doubled)
    offsets = torch.arange(low, high + 1, step, device=device) / 2
    queries = 2 * torch.arange(size, device=device)
    keys = torch.tensor(doubled, device=device)
    return offsets, (queries[:, None] - keys[None, :] - low) // step


class RelativeMlp(nn.Module):
    """Bias for each head and each pair of query and (pooled) key: called, it gives ``[heads, H*W, Hk*Wk]``.

    Args:
        num_heads: attention heads.
        trained_size: map (H, W) whose extent is the unit of the coordinates.
        hidden: channels of the hidden layer.
    """

    def __init__(self, num_heads: int, trained_size: tuple[int, int], hidden: int = 512):
        super().__init__()
        self.trained_size = trained_size
        self.fc1 = TokenLinear(2, hidden)
        self.act = nn.ReLU()
        self.fc2 = TokenLinear(hidden, num_heads)
        #: small network of positions, as the authors have it
        self.no_decay = ("fc1.weight", "fc2.weight")

    def forward(self, size: tuple[int, int], pooled: tuple[int, int]) -> Tensor:
        """Queries on a map of ``size`` (H, W), keys pooled from it to ``pooled`` (Hk, Wk)."""
        device = self.fc1.weight.device
        axes, rows = [], []
        for n, m, trained in zip(size, pooled, self.trained_size):
            offsets, index = axis_offsets(n, m, device)
            scaled = offsets * (8 / max(1, trained - 1))
            axes.append(scaled.sign() * (scaled.abs() + 1).log2() / 3)  # log2(8) = 3
            rows.append(index)
        grid = torch.stack(torch.meshgrid(axes[0], axes[1], indexing="ij"), dim=-1)  # [Uh, Uw, 2]
        table = self.fc2(self.act(self.fc1(grid.to(self.fc1.weight.dtype)))).permute(2, 0, 1)  # [heads, Uh, Uw]
        bias = table[:, rows[0]][..., rows[1]]  # [heads, H, Hk, W, Wk]
        return bias.transpose(2, 3).flatten(3).flatten(1, 2)  # [heads, H*W, Hk*Wk]
