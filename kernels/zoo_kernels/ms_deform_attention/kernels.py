"""Triton kernels of multi-scale deformable attention.

A program computes a tile of queries for one head: for each sample it reads two pairs of x-neighbours, ``[tile, 2, d]``,
which in head-major values are one contiguous line each. Softmax over the logits and the location arithmetic happen in
registers, all accumulation is in float32. As in the eager formulation the left corner is clamped to [0, W-2] and the
weights are tents that vanish by themselves outside the map, so that loads need no mask.

Legend: BLOCK queries of a program, T samples of a query and head, TP the power of two from T, D channels of a head, DP
from D, MODE the numbers of a reference (0: no reference, xy are locations and weight is used as it is).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sample(offset_x, offset_y, reference, size_x, size_y, count, MODE: tl.constexpr):
    """Pixel coordinates of a sample, and their derivative by the offset. MODE 0: locations; 2, 4: numbers a reference.

    ``count`` is the level's number of points, ``reference`` points to the level's reference of each query.
    """
    if MODE == 0:
        slope_x = size_x
        slope_y = size_y
        origin_x = -0.5
        origin_y = -0.5
    else:
        origin_x = tl.load(reference).to(tl.float32) * size_x - 0.5
        origin_y = tl.load(reference + 1).to(tl.float32) * size_y - 0.5
        if MODE == 2:
            slope_x = 1.0
            slope_y = 1.0
        else:
            slope_x = tl.load(reference + 2).to(tl.float32) * (size_x * 0.5 / count)
            slope_y = tl.load(reference + 3).to(tl.float32) * (size_y * 0.5 / count)
    return origin_x + offset_x * slope_x, origin_y + offset_y * slope_y, slope_x, slope_y


@triton.jit
def _slope(u):
    """Derivative of max(0, 1 - |u|); at its knots the one from the right."""
    return tl.where((u >= -1) & (u < 0), 1.0, tl.where((u >= 0) & (u < 1), -1.0, 0.0))


@triton.jit
def _softmax_terms(weight, rows, in_q, T: tl.constexpr, TP: tl.constexpr):
    """Largest logit of each row and the sum of exponentials relative to it."""
    t = tl.arange(0, TP)
    logits = tl.load(weight + rows[:, None] + t, mask=in_q[:, None] & (t < T), other=float("-inf")).to(tl.float32)
    # Rows beyond the end have no logits at all; zero keeps them finite.
    logits = tl.where(in_q[:, None], logits, 0.0)
    top = tl.max(logits, 1)
    return top, tl.sum(tl.exp(logits - top[:, None]), 1)


@triton.jit
def forward_kernel(
    value,  # [B, S, h, d] in any strides with stride 1 in d
    reference,  # [B, Q, L, MODE]
    xy,  # [B, Q, h, T, 2] contiguous
    weight,  # [B, Q, h, T] contiguous
    levels,  # [L, 4] int32: H, W, first position, points
    order,  # [Q] int32
    out,  # [B, Q, h, d] contiguous
    stride_b,
    stride_s,
    stride_h,
    Q,
    heads,
    L: tl.constexpr,
    T: tl.constexpr,
    TP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    MODE: tl.constexpr,
    ORDERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_q = q < Q
    if ORDERED:
        q = tl.load(order + q, mask=in_q, other=0)
    q = tl.where(in_q, q, 0)
    rows = ((batch * Q + q) * heads + head) * T  # [BLOCK]
    corner = tl.arange(0, 2)[None, :]  # the left and the right of a pair
    dim = tl.arange(0, DP)[None, None, :]
    value += batch * stride_b + head * stride_h
    if MODE != 0:
        top, total = _softmax_terms(weight, rows, in_q, T, TP)
    acc = tl.zeros([BLOCK, 2, DP], tl.float32)
    first = 0
    for level in range(L):
        height = tl.load(levels + level * 4)
        width = tl.load(levels + level * 4 + 1)
        start = tl.load(levels + level * 4 + 2)
        count = tl.load(levels + level * 4 + 3)
        right = tl.minimum(width - 1, 1) * stride_s  # a level of one column has no right neighbour, its weight is 0
        below = tl.where(height > 1, width, 0) * stride_s
        for t in range(first, first + count):
            ox = tl.load(xy + (rows + t) * 2).to(tl.float32)
            oy = tl.load(xy + (rows + t) * 2 + 1).to(tl.float32)
            w = tl.load(weight + rows + t).to(tl.float32)
            if MODE != 0:
                w = tl.exp(w - top) / total
            x, y, _, _ = _sample(
                ox,
                oy,
                reference + ((batch * Q + q) * L + level) * MODE,
                width.to(tl.float32),
                height.to(tl.float32),
                count.to(tl.float32),
                MODE,
            )
            ix = tl.minimum(tl.maximum(x.to(tl.int32), 0), tl.maximum(width - 2, 0))
            iy = tl.minimum(tl.maximum(y.to(tl.int32), 0), tl.maximum(height - 2, 0))
            u = (x - ix.to(tl.float32))[:, None] - corner.to(tl.float32)  # [BLOCK, 2]
            wx = tl.where(corner < width, tl.maximum(1.0 - tl.abs(u), 0.0), 0.0)
            fy = y - iy.to(tl.float32)
            wy0 = tl.maximum(1.0 - tl.abs(fy), 0.0)
            wy1 = tl.where(height > 1, tl.maximum(1.0 - tl.abs(fy - 1.0), 0.0), 0.0)
            pixel = value + ((start + iy * width + ix) * stride_s)[:, None, None]
            pixel = pixel + (corner * right)[:, :, None] + dim  # [BLOCK, 2, DP]
            if D == DP:
                v0 = tl.load(pixel).to(tl.float32)
                v1 = tl.load(pixel + below).to(tl.float32)
            else:
                v0 = tl.load(pixel, mask=dim < D, other=0.0).to(tl.float32)
                v1 = tl.load(pixel + below, mask=dim < D, other=0.0).to(tl.float32)
            wx = wx * w[:, None]
            acc += (wx * wy0[:, None])[:, :, None] * v0 + (wx * wy1[:, None])[:, :, None] * v1
        first += count
    channel = tl.arange(0, DP)[None, :]
    target = out + (rows // T * D)[:, None] + channel
    tl.store(target, tl.sum(acc, 1).to(out.dtype.element_ty), mask=in_q[:, None] & (channel < D))


@triton.jit
def backward_kernel(
    grad,  # [B, Q, h, d] contiguous
    value,
    reference,
    xy,
    weight,
    levels,
    order,
    grad_value,  # [B, h, S, d] float32, zeros
    grad_reference,  # [B, Q, h, L, MODE] float32
    grad_xy,
    grad_weight,
    scratch,  # [B, Q, h, T] float32, with MODE != 0; may be grad_weight
    stride_b,
    stride_s,
    stride_h,
    S,
    Q,
    heads,
    L: tl.constexpr,
    T: tl.constexpr,
    TP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    MODE: tl.constexpr,
    ORDERED: tl.constexpr,
    BLOCK: tl.constexpr,
    SAMPLES: tl.constexpr,
    REFERENCE: tl.constexpr,
    ATOMIC: tl.constexpr,
):
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_q = q < Q
    if ORDERED:
        q = tl.load(order + q, mask=in_q, other=0)
    q = tl.where(in_q, q, 0)
    rows = ((batch * Q + q) * heads + head) * T
    corner = tl.arange(0, 2)[None, :]
    dim = tl.arange(0, DP)[None, None, :]
    value += batch * stride_b + head * stride_h
    grad_value += (batch * heads + head) * S * D
    channel = tl.arange(0, DP)[None, :]
    inside = in_q[:, None] & (channel < D)
    g = tl.load(grad + (rows // T * D)[:, None] + channel, mask=inside, other=0.0).to(tl.float32)
    if MODE != 0:
        top, total = _softmax_terms(weight, rows, in_q, T, TP)
        mean = tl.zeros([BLOCK], tl.float32)  # sum over samples of weight * dL/dweight
    g = g[:, None, :]  # [BLOCK, 1, DP]
    first = 0
    for level in range(L):
        height = tl.load(levels + level * 4)
        width = tl.load(levels + level * 4 + 1)
        start = tl.load(levels + level * 4 + 2)
        count = tl.load(levels + level * 4 + 3)
        right = tl.minimum(width - 1, 1)
        below = tl.where(height > 1, width, 0)
        size_x = width.to(tl.float32)
        size_y = height.to(tl.float32)
        at = reference + ((batch * Q + q) * L + level) * MODE
        origin_dx = tl.zeros([BLOCK], tl.float32)
        origin_dy = tl.zeros([BLOCK], tl.float32)
        slope_dx = tl.zeros([BLOCK], tl.float32)
        slope_dy = tl.zeros([BLOCK], tl.float32)
        for t in range(first, first + count):
            ox = tl.load(xy + (rows + t) * 2).to(tl.float32)
            oy = tl.load(xy + (rows + t) * 2 + 1).to(tl.float32)
            w = tl.load(weight + rows + t).to(tl.float32)
            if MODE != 0:
                w = tl.exp(w - top) / total
            x, y, slope_x, slope_y = _sample(ox, oy, at, size_x, size_y, count.to(tl.float32), MODE)
            ix = tl.minimum(tl.maximum(x.to(tl.int32), 0), tl.maximum(width - 2, 0))
            iy = tl.minimum(tl.maximum(y.to(tl.int32), 0), tl.maximum(height - 2, 0))
            u = (x - ix.to(tl.float32))[:, None] - corner.to(tl.float32)  # [BLOCK, 2]
            wx = tl.where(corner < width, tl.maximum(1.0 - tl.abs(u), 0.0), 0.0)
            fy = y - iy.to(tl.float32)
            wy0 = tl.maximum(1.0 - tl.abs(fy), 0.0)
            wy1 = tl.where(height > 1, tl.maximum(1.0 - tl.abs(fy - 1.0), 0.0), 0.0)
            place = start + iy * width + ix  # [BLOCK]
            if SAMPLES:
                pixel = value + (place * stride_s)[:, None, None] + (corner * (right * stride_s))[:, :, None] + dim
                if D == DP:
                    v0 = tl.load(pixel).to(tl.float32)
                    v1 = tl.load(pixel + below * stride_s).to(tl.float32)
                else:
                    v0 = tl.load(pixel, mask=dim < D, other=0.0).to(tl.float32)
                    v1 = tl.load(pixel + below * stride_s, mask=dim < D, other=0.0).to(tl.float32)
                dwx = tl.where(corner < width, _slope(u), 0.0)
                dwy0 = _slope(fy)
                dwy1 = tl.where(height > 1, _slope(fy - 1.0), 0.0)
                dot0 = tl.sum(g * v0, 2)  # [BLOCK, 2]
                dot1 = tl.sum(g * v1, 2)
                column = wy0[:, None] * dot0 + wy1[:, None] * dot1
                dw = tl.sum(wx * column, 1)
                dx = w * tl.sum(dwx * column, 1)
                dy = w * tl.sum(wx * (dwy0[:, None] * dot0 + dwy1[:, None] * dot1), 1)
                if MODE == 0:
                    tl.store(grad_weight + rows + t, dw.to(grad_weight.dtype.element_ty), mask=in_q)
                else:
                    tl.store(scratch + rows + t, w * dw, mask=in_q)
                    mean += w * dw
                tl.store(grad_xy + (rows + t) * 2, (dx * slope_x).to(grad_xy.dtype.element_ty), mask=in_q)
                tl.store(grad_xy + (rows + t) * 2 + 1, (dy * slope_y).to(grad_xy.dtype.element_ty), mask=in_q)
                if REFERENCE:
                    origin_dx += dx
                    origin_dy += dy
                    slope_dx += dx * ox
                    slope_dy += dy * oy
            if ATOMIC:
                target = grad_value + (place * D)[:, None, None] + (corner * (right * D))[:, :, None] + dim
                share = wx * w[:, None]
                share0 = share * wy0[:, None]
                share1 = share * wy1[:, None]
                real = in_q[:, None, None] & (dim < D)
                tl.atomic_add(target, share0[:, :, None] * g, mask=real & (share0[:, :, None] != 0.0), sem="relaxed")
                tl.atomic_add(
                    target + below * D, share1[:, :, None] * g, mask=real & (share1[:, :, None] != 0.0), sem="relaxed"
                )
        if REFERENCE:
            to = grad_reference + (rows // T * L + level) * MODE
            tl.store(to, origin_dx * size_x, mask=in_q)
            tl.store(to + 1, origin_dy * size_y, mask=in_q)
            if MODE == 4:
                half = 0.5 / count.to(tl.float32)
                tl.store(to + 2, slope_dx * (size_x * half), mask=in_q)
                tl.store(to + 3, slope_dy * (size_y * half), mask=in_q)
        first += count
    if SAMPLES and MODE != 0:
        # Softmax's backward, w (dw - mean), once the mean is known. Through memory in float32: <grad, out> would give
        # the mean at once, but with the rounding of a half-precision out, which the difference magnifies.
        tl.debug_barrier()
        t = tl.arange(0, TP)
        place = rows[:, None] + t
        real = in_q[:, None] & (t < T)
        w = tl.exp(tl.load(weight + place, mask=real, other=float("-inf")).to(tl.float32) - top[:, None])
        dlogit = tl.load(scratch + place, mask=real, other=0.0) - w / total[:, None] * mean[:, None]
        tl.store(grad_weight + place, dlogit.to(grad_weight.dtype.element_ty), mask=real)
