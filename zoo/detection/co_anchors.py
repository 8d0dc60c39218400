"""Anchors and their offsets for Co-DETR's auxiliary heads, on torchvision's generator and coder.

What differs from torchvision: corners are not rounded to whole pixels, strides are given and not inferred from the
image, and offsets of the size are bounded below as they are above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator

#: largest logarithm of how much wider or higher a box is than its anchor
LARGEST = math.log(1000 / 16)


class Anchors(AnchorGenerator):
    """Boxes around the corner of every pixel of several maps.

    Args:
        strides: image pixels a pixel of each map.
        base: side of the smallest square anchor in strides.
        octaves: sizes an octave: ``base`` times 2^(i / octaves).
        ratios: heights over widths.
    """

    def __init__(self, strides: Sequence[int], base: float, octaves: int, ratios: Sequence[float]):
        sizes = tuple(tuple(s * base * 2 ** (i / octaves) for i in range(octaves)) for s in strides)
        super().__init__(sizes, (tuple(ratios),) * len(strides))
        self.strides = tuple(strides)

    @property
    def per_location(self) -> int:
        """Anchors a pixel."""
        return len(self.sizes[0]) * len(self.aspect_ratios[0])

    def generate_anchors(  # type: ignore[override]
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """The anchors of one pixel at the origin, ``[A, 4]``: all sizes of the first ratio, then of the next."""
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        heights = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        w, h = ((r[:, None] * sizes).flatten() for r in (1 / heights, heights))
        return torch.stack([-w, -h, w, h], dim=1) / 2

    def of(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Corners in image pixels ``[H * W * A, 4]`` for each map ``[B, C, H, W]``.

        Raises:
            ValueError: another number of maps than of strides.
        """
        if len(maps) != len(self.strides):
            raise ValueError(f"{len(maps)} maps were given; the anchors are for {len(self.strides)}")
        self.set_cell_anchors(torch.float32, maps[0].device)
        steps = [[torch.tensor(s, device=maps[0].device)] * 2 for s in self.strides]
        return self.grid_anchors([list(m.shape[-2:]) for m in maps], steps)

    def inside(self, maps: Sequence[Tensor], sizes: Tensor) -> Tensor:
        """Which anchors stand on the image and not on its padding, ``[B, N]``.

        Args:
            maps: each ``[B, C, H, W]``.
            sizes: height and width of each image without padding, ``[B, 2]``.
        """
        found = []
        for m, stride in zip(maps, self.strides):
            rows, columns = (torch.arange(n, device=sizes.device) * stride for n in m.shape[-2:])
            y, x = rows < sizes[:, :1], columns < sizes[:, 1:]  # [B, H], [B, W]
            grid = (y[:, :, None] & x[:, None]).flatten(1)
            found.append(grid.repeat_interleave(self.per_location, dim=1))
        return torch.cat(found, dim=1)


class Offsets(BoxCoder):
    """Boxes as offsets from anchors, (dx, dy, dw, dh).

    Args:
        deviations: what offsets are divided by.
    """

    def __init__(self, deviations: Sequence[float] = (1.0, 1.0, 1.0, 1.0)):
        super().__init__(tuple(1 / d for d in deviations), LARGEST)

    def apply(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        """Corners of boxes: offsets ``[N, K * 4]`` from anchors ``[N, 4]`` -> ``[N, K * 4]``."""
        least = torch.tensor([-math.inf, -math.inf, -LARGEST * self.weights[2], -LARGEST * self.weights[3]])
        bounded = torch.maximum(offsets.unflatten(1, (-1, 4)), least.to(offsets)).flatten(1)
        return self.decode_single(bounded, anchors)
