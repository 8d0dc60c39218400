"""Padding a map so that windows, regions or strides divide it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def to_pair(value: int | tuple[int, int] | list[int], name: str = "value") -> tuple[int, int]:
    """``n -> (n, n)``; a pair stays.

    Raises:
        ValueError: not one or two positive integers.
    """
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(n, int) or n < 1 for n in pair):
        raise ValueError(f"{name}={value!r}: accepted are a positive integer or two of them (height, width)")
    return pair[0], pair[1]


def remainder(size: int, multiple: int) -> int:
    """How much is missing from ``size`` to the next multiple."""
    return -size % multiple


def pad_hwc(x: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Zero-pad ``[B, H, W, C]`` at the bottom and right to multiples of (height, width)."""
    bottom, right = remainder(x.shape[1], multiple[0]), remainder(x.shape[2], multiple[1])
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x


def pad_chw(x: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Zero-pad ``[B, C, H, W]`` at the bottom and right to multiples of (height, width)."""
    bottom, right = remainder(x.shape[2], multiple[0]), remainder(x.shape[3], multiple[1])
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x
