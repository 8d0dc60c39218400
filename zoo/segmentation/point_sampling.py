"""Masks read at points instead of at all pixels.

PointRend: Image Segmentation as Rendering (arXiv:1912.08193), section 3.1; in the losses of Mask2Former
(arXiv:2112.01527), section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class RandomPoints:
    """Where the points are that losses and costs read: uniform in the unit square.

    Args:
        generator: where the numbers come from, on the device of the masks; None for PyTorch's own, which
            ``torch.manual_seed`` sets.
    """

    def __init__(self, generator: torch.Generator | None = None):
        self.generator = generator

    def __call__(self, rows: int, points: int, device: torch.device) -> Tensor:
        """Coordinates (x, y) in 0 ... 1, ``[rows, points, 2]``."""
        return torch.rand(rows, points, 2, device=device, generator=self.generator)


def sample_at(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps at points; outside a map is zero.

    Args:
        maps: float ``[N, C, H, W]``.
        points: ``[N, P, 2]``, (x, y) in 0 ... 1 over the map, whose corners are the outer corners of its pixels.

    Returns:
        ``[N, C, P]``.
    """
    grid = (2.0 * points - 1.0).to(maps.dtype)[:, :, None]  # [N, P, 1, 2]
    return F.grid_sample(maps, grid, align_corners=False)[..., 0]


@torch.no_grad()
def uncertain_points(
    logits: Tensor, points: int, oversample: float = 3.0, importance: float = 0.75, draw: RandomPoints | None = None
) -> Tensor:
    """Points of which most lie where a mask is least sure.

    ``oversample`` times as many points are drawn; of these the ``importance * points`` with the logits nearest to 0 are
    kept, and the others are drawn anew.

    Args:
        logits: of the masks, ``[N, H, W]``.
        points: P points a mask.
        oversample: candidates a point.
        importance: share of the points that are chosen so.
        draw: gives the random points.

    Returns:
        ``[N, P, 2]``, (x, y) in 0 ... 1.
    """
    draw = draw or RandomPoints()
    candidates = draw(len(logits), int(points * oversample), logits.device)
    unsure = -sample_at(logits[:, None], candidates)[:, 0].abs()  # [N, candidates]
    chosen = int(importance * points)
    best = unsure.topk(chosen, dim=1).indices
    kept = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    if chosen == points:
        return kept
    return torch.cat([kept, draw(len(logits), points - chosen, logits.device)], dim=1)
