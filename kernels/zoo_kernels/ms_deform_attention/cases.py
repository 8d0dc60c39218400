"""Calls of deformable attention that the tests of all operators run."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_kernels.ms_deform_attention import ms_deform_attention, ms_deform_attention_fused
from zoo_kernels.testing import Case

LEVELS = ((7, 13), (4, 5), (1, 3), (3, 1), (1, 1))


def pixels(shape: tuple[int, ...], seed: int, low: int = -2, high: int = 14) -> Tensor:
    """Coordinates in pixels, inside and outside the maps, a quarter pixel or more off the pixel centres."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator) + 0.25 + 0.5 * torch.rand(shape, generator=generator)


def normal(*shape: int, seed: int) -> Tensor:
    """Normal numbers from a fixed seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def classic(
    levels: tuple[tuple[int, int], ...], batch: int, queries: int, heads: int, dim: int, points: int
) -> tuple[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor]:
    """Arguments of :func:`ms_deform_attention`."""
    size = torch.tensor([(w, h) for h, w in levels])[:, None]  # [L, 1, 2]
    xy = pixels((batch, queries, heads, len(levels), points, 2), 1)
    value = normal(batch, sum(h * w for h, w in levels), heads, dim, seed=2)
    weights = normal(batch, queries, heads, len(levels), points, seed=3)
    return value, levels, (xy + 0.5) / size, weights


def fused(
    levels: tuple[tuple[int, int], ...], batch: int, queries: int, heads: int, dim: int, points: int, numbers: int
) -> tuple[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor, Tensor]:
    """Arguments of :func:`ms_deform_attention_fused`, its points off the pixel centres too.

    Sizes of levels and of boxes are powers of two, so that the arithmetic is exact in half precision as well.
    """
    value = normal(batch, sum(h * w for h, w in levels), heads, dim, seed=4)
    size = torch.tensor([(w, h) for h, w in levels])  # [L, 2]
    generator = torch.Generator().manual_seed(5)
    xy = torch.randint(0, 8, (batch, queries, len(levels), 2), generator=generator) / size
    quarter = torch.randint(-3, 4, (batch, queries, heads, len(levels), points, 2), generator=generator)
    offsets = quarter + torch.randint(0, 2, quarter.shape, generator=generator) / 2 + 0.25
    reference = xy
    if numbers == 4:
        wh = 2.0 ** -torch.randint(0, 2, xy.shape, generator=generator)
        reference = torch.cat([xy, wh], dim=-1)
        offsets = offsets / (wh * size * 0.5 / points)[:, :, None, :, None]
    return value, levels, reference, offsets, 3 * normal(batch, queries, heads, len(levels), points, seed=6)


def cases() -> dict[str, Case]:
    """Odd maps and head sizes, one query, an encoder, both kinds of reference, uneven points, large logits."""
    powers = ((8, 4), (4, 2), (1, 1))
    three = (LEVELS[0], LEVELS[1], LEVELS[4])
    value, _, locations, weights = classic(three, 1, 6, 2, 8, 2)
    uneven = torch.cat([locations[:, :, :, 0], locations[:, :, :, 1, :1], locations[:, :, :, 2]], dim=3)
    large = fused(powers, 1, 5, 1, 8, 2, 2)
    every = (0, 2, 3, 4)
    return {
        "odd": Case(ms_deform_attention, classic(LEVELS, 2, 7, 2, 12, 1), batched=(0, 2, 3)),
        "one-query": Case(ms_deform_attention, classic(((5, 3),), 1, 1, 1, 5, 1), batched=(0, 2, 3)),
        "encoder": Case(ms_deform_attention, classic(((5, 6), (2, 3)), 1, 36, 1, 32, 1), batched=(0, 2, 3)),
        "uneven-points": Case(
            ms_deform_attention,
            (value, three, uneven, weights.flatten(3)[..., :5]),
            {"points": (2, 1, 2)},
            batched=(0, 2, 3),
        ),
        "points": Case(ms_deform_attention_fused, fused(powers, 2, 7, 1, 8, 3, 2), batched=every),
        "boxes": Case(ms_deform_attention_fused, fused(powers, 1, 7, 2, 32, 2, 4), batched=every),
        "large-logits": Case(ms_deform_attention_fused, (*large[:4], large[4] * 5e3), batched=every),
    }
