"""Where a pixel or a box is, as a vector: sines of the coordinates, or learned rows and columns.

Sines of a map: End-to-End Object Detection with Transformers (arXiv:2005.12872), appendix A.4. The half pixel that
Deformable DETR takes off, DAB-DETR's temperatures along each axis and the sines of boxes (arXiv:2201.12329, eq. 8) are
options of the same functions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def coordinate_sines(coordinates: Tensor, features: int, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines, in turn, of each coordinate at ``features / 2`` wavelengths.

    Args:
        coordinates: ``[..., n]``, already multiplied by their scale (2 pi for coordinates in 0 ... 1).
        features: F numbers a coordinate, even.
        temperature: ratio of the longest wavelength to the shortest.

    Returns:
        ``[..., n * F]``, one coordinate after the other.
    """
    if features % 2:
        raise ValueError(f"features={features}: accepted are even numbers")
    steps = torch.arange(features, dtype=torch.float32, device=coordinates.device)
    wavelengths = temperature ** (2 * torch.div(steps, 2, rounding_mode="floor") / features)
    phase = coordinates[..., None] / wavelengths  # [..., n, F]
    sines = torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1)
    return sines.flatten(-3)


def box_sines(boxes: Tensor, features: int = 128) -> Tensor:
    """Sines of points or boxes in 0 ... 1, y before x: ``[..., 2 or 4]`` -> ``[..., 2 or 4 times features]``."""
    if boxes.shape[-1] not in (2, 4):
        raise ValueError(f"boxes has shape {tuple(boxes.shape)}: the last size must be 2 (x, y) or 4 (x, y, w, h)")
    swapped = torch.cat([boxes[..., 1:2], boxes[..., 0:1], boxes[..., 2:]], dim=-1)
    return coordinate_sines(swapped * (2 * math.pi), features)


class SinePositions(nn.Module):
    """Sines of the row and the column of each pixel that is no padding.

    Args:
        features: numbers an axis; the encoding has twice as many channels, those of the row first.
        temperature: along both axes, or a pair (rows, columns).
        normalise: divide by the number of rows or columns that are no padding, and multiply by ``scale``.
        scale: see ``normalise``.
        half_pixel: take positions at the middle of pixels (only where they are normalised).
    """

    def __init__(
        self,
        features: int = 64,
        temperature: float | tuple[float, float] = 10000.0,
        normalise: bool = True,
        scale: float = 2 * math.pi,
        half_pixel: bool = False,
    ):
        super().__init__()
        self.features = features
        self.temperature = temperature if isinstance(temperature, tuple) else (temperature, temperature)
        self.normalise, self.scale, self.half_pixel = normalise, scale, half_pixel

    def forward(self, mask: Tensor) -> Tensor:
        """The mask ``[B, H, W]``, true in the padding, to ``[B, 2 * features, H, W]``."""
        inside = ~mask
        axes = []
        for dim, temperature in zip((1, 2), self.temperature):
            place = inside.cumsum(dim, dtype=torch.float32)  # [B, H, W]
            if self.normalise:
                last = place.select(dim, -1).unsqueeze(dim)
                place = (place - 0.5 * self.half_pixel) / (last + 1e-6) * self.scale
            axes.append(coordinate_sines(place[..., None], self.features, temperature))
        return torch.cat(axes, dim=-1).permute(0, 3, 1, 2)


class LearnedPositions(nn.Module):
    """A learned vector for each of 50 columns and of 50 rows; the mask is only read for its size.

    Args:
        features: numbers an axis; the encoding has twice as many channels, those of the column first.

    Raises:
        ValueError: (at a call) a map of more than 50 rows or columns.
    """

    def __init__(self, features: int = 256):
        super().__init__()
        self.row_embed = nn.Embedding(50, features)
        self.col_embed = nn.Embedding(50, features)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor) -> Tensor:
        """The mask ``[B, H, W]`` to ``[B, 2 * features, H, W]``."""
        B, H, W = mask.shape
        if max(H, W) > self.row_embed.num_embeddings:
            raise ValueError(f"a map of {H} x {W}: learned positions are for at most 50 rows and columns")
        columns = self.col_embed.weight[:W].expand(H, W, -1)
        rows = self.row_embed.weight[:H, None].expand(H, W, -1)
        return torch.cat([columns, rows], dim=-1).permute(2, 0, 1).expand(B, -1, -1, -1)


def build_positions(kind: str, dim: int, **options: object) -> nn.Module:
    """``"sine"`` or ``"learned"`` positions with ``dim`` channels in all.

    Raises:
        ValueError: another kind, an odd ``dim``.
    """
    if dim % 2:
        raise ValueError(f"dim={dim}: accepted are even numbers")
    if kind == "sine":
        return SinePositions(dim // 2, **options)  # type: ignore[arg-type]
    if kind == "learned":
        return LearnedPositions(dim // 2)
    raise ValueError(f"positions={kind!r}: accepted are 'sine' and 'learned'")
