"""Small pieces that Triton backends share. Imports triton, so only a ``triton.py`` may import it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo_kernels.dispatch import interpreting

LOG2E = 1.4426950408889634

#: Triton's interpreter multiplies the bit patterns of bfloat16 and rounds to it towards zero; both are made good here.
INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def cast(x, dtype: tl.constexpr):
    """float32 ``x`` rounded to nearest in ``dtype``."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot(a, b):
    """a @ b summed in float32; float32 operands are not rounded to tf32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def dot_wide(a, b):
    """a @ b for float32 b: in half precision b enters as the sum of two halves, so that its rounding does not count."""
    high = cast(b, a.dtype)
    out = dot(a, high)
    if a.dtype != tl.float32:
        out += dot(a, cast(b - high.to(tl.float32), a.dtype))
    return out


def block(n: int, low: int = 16, high: int = 1 << 20) -> int:
    """The power of two that holds ``n``, within low .. high; tensor cores need 16."""
    return min(high, max(low, triton.next_power_of_2(n)))


def unit_stride(t: Tensor) -> Tensor:
    """``t``, copied if its last dimension is not contiguous."""
    return t if t.stride(-1) == 1 else t.contiguous()


def device_of(t: Tensor) -> torch.cuda.device:
    """Context in which the device of ``t`` is the current one; does nothing for a CPU tensor."""
    return torch.cuda.device(t.device if t.is_cuda else -1)
