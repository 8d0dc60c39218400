"""A classifier over the last map of any backbone, for those whose own head is not wanted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.registry import Registry


class PooledHead(nn.Module):
    """Global average of the last map, layer norm, dropout, linear.

    Args:
        in_channels: channels of the last map.
        num_classes: logits.
        norm: normalise the pooled features.
        dropout: probability.
    """

    def __init__(self, in_channels: int, num_classes: int, norm: bool = True, dropout: float = 0.0):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: accepted are 1 and above")
        self.norm = nn.LayerNorm(in_channels, eps=1e-6) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, maps: tuple[Tensor, ...] | Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of the last of the maps ``[B, C, H, W]``."""
        last = maps if isinstance(maps, Tensor) else maps[-1]
        return self.fc(self.dropout(self.norm(torch.mean(last, dim=(2, 3)))))


HEADS = Registry("classification head", ())
HEADS.register(PooledHead, name="pooled")
