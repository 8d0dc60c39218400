"""Triton kernels of super tokens; a program is a cell with its pixels and the nine tokens around it.

Pixels are read in place from the channels-last map: cutting into cells and padding are in the addresses, and the nine
tokens are read through the grid's coordinates, so that nothing is unfolded in memory. What a cell gives to its nine
tokens is written once in float32 and summed by a second kernel in a fixed order; there are no atomics.

Legend: G cells of all images, P pixels of a cell, BP pixels of a step, K = 16 the nine tokens padded for tensor cores,
C channels, CP the next power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _matmul(a, b, PRECISION: tl.constexpr):
    """a @ b in b's dtype with float32 accumulation; "ieee": in exact float32.

    The interpreter runs the latter, for it has no bfloat16 product.
    """
    if PRECISION == "ieee":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a.to(b.dtype), b)


@triton.jit
def _near(tokens, batch, cy, cx, hh, ww, C: tl.constexpr, CP: tl.constexpr):
    """The nine tokens around a cell, zeros beyond the grid: [16, CP]."""
    k = tl.arange(0, 16)
    y = cy + k // 3 - 1
    x = cx + k % 3 - 1
    inside = (k < 9) & (y >= 0) & (y < hh) & (x >= 0) & (x < ww)
    channel = tl.arange(0, CP)
    place = (batch * hh + y) * ww + x
    return tl.load(
        tokens + place[:, None] * C + channel[None, :], mask=inside[:, None] & (channel < C)[None, :], other=0.0
    )


@triton.jit
def _pixels(p, cy, cx, H, W, CH: tl.constexpr, CW: tl.constexpr):
    """Place in the map of the cell's pixels p, and whether they are on it."""
    y = cy * CH + p // CW
    x = cx * CW + p % CW
    return y * W + x, (p < CH * CW) & (y < H) & (x < W)


@triton.jit
def mean_kernel(
    x,  # [B, H, W, C]
    tokens,  # [B, hh, ww, C]
    H,
    W,
    hh,
    ww,
    CH: tl.constexpr,
    CW: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    BP: tl.constexpr,
):
    """Mean of each cell's pixels, those beyond the map counted as zeros."""
    cell = tl.program_id(0).to(tl.int64)
    batch, cy, cx = cell // (hh * ww), cell // ww % hh, cell % ww
    channel = tl.arange(0, CP)
    total = tl.zeros([CP], tl.float32)
    for first in range(0, CH * CW, BP):
        place, inside = _pixels(first + tl.arange(0, BP), cy, cx, H, W, CH, CW)
        at = x + (batch * H * W + place)[:, None] * C + channel[None, :]
        total += tl.sum(tl.load(at, mask=inside[:, None] & (channel < C)[None, :], other=0.0).to(tl.float32), 0)
    mean = total * (1.0 / (CH * CW))
    tl.store(tokens + cell * C + channel, mean.to(tokens.dtype.element_ty), mask=channel < C)


@triton.jit
def cell_kernel(
    x,  # [B, H, W, C]
    tokens,  # [B, hh, ww, C], where PRODUCTS
    affinity,  # [G, 9, P]: written where PRODUCTS, read otherwise
    gathered,  # [G, 9, C] float32, where GATHER
    total,  # [G, 9] float32, where GATHER
    scale,
    H,
    W,
    hh,
    ww,
    CH: tl.constexpr,
    CW: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    BP: tl.constexpr,
    PRODUCTS: tl.constexpr,
    SOFTMAX: tl.constexpr,
    GATHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Affinity <x_p, token_k> (with SOFTMAX scaled and normalised over k), and sum_p affinity_kp x_p."""
    cell = tl.program_id(0).to(tl.int64)
    batch, cy, cx = cell // (hh * ww), cell // ww % hh, cell % ww
    k = tl.arange(0, 16)
    channel = tl.arange(0, CP)
    P: tl.constexpr = CH * CW
    if PRODUCTS:
        near = _near(tokens, batch, cy, cx, hh, ww, C, CP)
    if GATHER:
        acc = tl.zeros([16, CP], tl.float32)
        share = tl.zeros([16], tl.float32)
    for first in range(0, P, BP):
        p = first + tl.arange(0, BP)
        place, inside = _pixels(p, cy, cx, H, W, CH, CW)
        at = x + (batch * H * W + place)[:, None] * C + channel[None, :]
        pixel = tl.load(at, mask=inside[:, None] & (channel < C)[None, :], other=0.0)  # [BP, CP]
        to = affinity + cell * 9 * P + k[:, None] * P + p[None, :]
        real = (k < 9)[:, None] & (p < P)[None, :]
        if PRODUCTS:
            a = _matmul(near, tl.trans(pixel), PRECISION)  # [16, BP]
            if SOFTMAX:
                a = tl.where((k < 9)[:, None], a * scale, float("-inf"))
                a = tl.exp(a - tl.max(a, 0)[None, :])
                a = tl.where(real, a / tl.sum(a, 0)[None, :], 0.0)
            tl.store(to, a.to(affinity.dtype.element_ty), mask=real)
            a = a.to(affinity.dtype.element_ty)
        else:
            a = tl.load(to, mask=real, other=0.0)
        if GATHER:
            acc += _matmul(a, pixel, PRECISION)
            share += tl.sum(a.to(tl.float32), 1)
    if GATHER:
        tl.store(
            gathered + cell * 9 * C + k[:, None] * C + channel[None, :],
            acc,
            mask=(k < 9)[:, None] & (channel < C)[None, :],
        )
        tl.store(total + cell * 9 + k, share, mask=k < 9)


@triton.jit
def fold_kernel(
    gathered,  # [G, 9, C] float32
    total,  # [G, 9] float32
    tokens,  # [B, hh, ww, C]
    denominator,  # [B, hh, ww] float32, where DIVIDE
    eps,
    hh,
    ww,
    C: tl.constexpr,
    CP: tl.constexpr,
    DIVIDE: tl.constexpr,
):
    """What each token is given by the nine cells around it, with DIVIDE over the sum of their affinities + eps."""
    cell = tl.program_id(0).to(tl.int64)
    batch, cy, cx = cell // (hh * ww), cell // ww % hh, cell % ww
    k = tl.arange(0, 16)
    # The cell at (dy, dx) of the token knows the token as its neighbour (-dy, -dx), that is number 8 - k.
    y = cy + k // 3 - 1
    x = cx + k % 3 - 1
    inside = (k < 9) & (y >= 0) & (y < hh) & (x >= 0) & (x < ww)
    row = ((batch * hh + y) * ww + x) * 9 + 8 - k
    channel = tl.arange(0, CP)
    given = tl.load(
        gathered + row[:, None] * C + channel[None, :], mask=inside[:, None] & (channel < C)[None, :], other=0.0
    )
    token = tl.sum(given, 0)
    if DIVIDE:
        of = tl.sum(tl.load(total + row, mask=inside, other=0.0), 0) + eps
        token = token / of
        tl.store(denominator + cell, of)
    tl.store(tokens + cell * C + channel, token.to(tokens.dtype.element_ty), mask=channel < C)


@triton.jit
def spread_kernel(
    tokens,  # [B, hh, ww, C]
    affinity,  # [G, 9, P]
    out,  # [B, H, W, C]
    H,
    W,
    hh,
    ww,
    CH: tl.constexpr,
    CW: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    BP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sum_k affinity_kp token_k for every pixel p of the map."""
    cell = tl.program_id(0).to(tl.int64)
    batch, cy, cx = cell // (hh * ww), cell // ww % hh, cell % ww
    k = tl.arange(0, 16)
    channel = tl.arange(0, CP)
    P: tl.constexpr = CH * CW
    near = _near(tokens, batch, cy, cx, hh, ww, C, CP)
    for first in range(0, P, BP):
        p = first + tl.arange(0, BP)
        place, inside = _pixels(p, cy, cx, H, W, CH, CW)
        a = tl.load(
            affinity + cell * 9 * P + k[:, None] * P + p[None, :],
            mask=(k < 9)[:, None] & (p < P)[None, :],
            other=0.0,
        )
        y = _matmul(tl.trans(a), near, PRECISION)  # [BP, CP]
        at = out + (batch * H * W + place)[:, None] * C + channel[None, :]
        tl.store(at, y.to(out.dtype.element_ty), mask=inside[:, None] & (channel < C)[None, :])
