"""Small parts of the medical networks, for maps of two and of three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LINEAR = {2: "bilinear", 3: "trilinear"}


def check_dims(dims: int) -> None:
    """Raise ValueError unless maps of so many dimensions are known: 2 or 3."""
    if dims not in CONV:
        raise ValueError(f"dims={dims!r}: accepted are 2 (images) and 3 (volumes)")


def to_tuple(value: int | Sequence[int], dims: int, name: str) -> tuple[int, ...]:
    """One number for every dimension; a sequence of ``dims`` numbers stays.

    Raises:
        ValueError: not one or ``dims`` positive integers.
    """
    found = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(found) != dims or any(not isinstance(n, int) or n < 1 for n in found):
        raise ValueError(f"{name}={value!r}: accepted are a positive integer or {dims} of them")
    return found


def check_divisible(x: Tensor, multiples: Sequence[int], channels: int) -> None:
    """Raise ValueError unless ``x`` is ``[B, channels, ...]`` with sizes that the multiples divide, zero excluded."""
    dims = len(multiples)
    if x.dim() != dims + 2 or x.shape[1] != channels:
        raise ValueError(f"the input has shape {tuple(x.shape)}: accepted is [B, {channels}] and {dims} sizes")
    sizes = tuple(x.shape[2:])
    if any(n < 1 or n % m for n, m in zip(sizes, multiples)):
        raise ValueError(f"the input has size {sizes}: accepted are multiples of {tuple(multiples)}; pad it")


def conv_unit(
    dims: int, in_chans: int, out_chans: int, kernel: int | Sequence[int] = 3, norm: bool = True
) -> nn.Sequential:
    """Convolution with bias, batch normalisation (unless ``norm`` is False) and ReLU; keeps the size."""
    size = to_tuple(kernel, dims, "kernel")
    parts: list[nn.Module] = [CONV[dims](in_chans, out_chans, size, padding=tuple(k // 2 for k in size))]
    if norm:
        parts.append(NORM[dims](out_chans))
    return nn.Sequential(*parts, nn.ReLU(inplace=True))


def conv_block(
    dims: int, in_chans: int, out_chans: int, kernel: int | Sequence[int] = 3, norm: bool = True, count: int = 2
) -> nn.Sequential:
    """``count`` convolution units in a row, the first of which changes the channels."""
    units = [conv_unit(dims, in_chans if i == 0 else out_chans, out_chans, kernel, norm) for i in range(count)]
    return nn.Sequential(*units)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation of ``[B, C, ...]`` to a size, corners not aligned."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=LINEAR[x.dim() - 2], align_corners=False)


def init_kaiming(module: nn.Module) -> None:
    """Weights of convolutions and linear layers by He's rule, scales of normalisations near 1; biases as they are."""
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(m.weight)
        elif isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.normal_(m.weight, 1.0, 0.02)
            nn.init.zeros_(m.bias)
