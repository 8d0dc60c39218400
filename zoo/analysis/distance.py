"""Mean attention distance of each head: how far away, on average, what it attends to is.

A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, appendix D.7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.analysis.rollout import Record


def attention_distance(record: Record, stride: float = 1.0) -> Tensor:
    """Mean distance between a position and what it attends to, weighted by attention.

    Args:
        record: with one map a head (``collect_attention(..., average_heads=False)``).
        stride: pixels from a position to the next; 1 gives the distance in tokens.

    Returns:
        float64 ``[heads]``.

    Raises:
        ValueError: the map is not of the record's grid.
    """
    height, width = record.grid
    attention = record.map.double()  # [heads, N, N]
    if attention.shape[-1] != height * width:
        raise ValueError(f"map has shape {tuple(attention.shape)}; a grid of {height} x {width} needs {height * width}")
    rows = torch.arange(height, dtype=torch.float64, device=attention.device).repeat_interleave(width)
    columns = torch.arange(width, dtype=torch.float64, device=attention.device).repeat(height)
    places = torch.stack([rows, columns], dim=1)  # [N, 2]
    distance = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
    return stride * (attention * distance).sum(-1).mean(-1)
