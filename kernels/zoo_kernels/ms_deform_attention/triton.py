"""Multi-scale deformable attention as Triton kernels.

A program computes a tile of queries for one head: for each sample it reads two pairs of x-neighbours, ``[tile, 2, d]``,
which in head-major values are one contiguous line each. Softmax over the logits and the location arithmetic happen in
registers, all accumulation is in float32. Where there are as many queries as positions (an encoder), tiles of queries
are tiles of the image rather than of a raster line, so that their samples share cache lines.

The backward adds the value's gradient with atomics; under ``torch.use_deterministic_algorithms(True)`` it is summed in
a fixed order instead (the sorted bags of :mod:`zoo_kernels.ms_deform_attention.eager`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo_kernels.dispatch import multiprocessors
from zoo_kernels.ms_deform_attention import eager
from zoo_kernels.testing import BuildCase

Levels = tuple[tuple[int, int], ...]

#: Largest head_dim: two lines of it and their gradient stay in registers.
_MAX_DIM = 256


def can_run(value: Tensor, *args: object) -> str | None:
    """Why the kernels cannot serve a call, or None."""
    if value.shape[3] > _MAX_DIM:
        return f"head_dim {value.shape[3]} is larger than {_MAX_DIM}"
    if value[0].numel() >= 2**31 if value.shape[0] else False:
        return f"value has {value[0].numel()} numbers an image, the kernels address fewer than 2**31"
    return None


forward_fused_can_run = can_run


def forward(value: Tensor, shapes: Levels, locations: Tensor, weights: Tensor, points: tuple[int, ...]) -> Tensor:
    """Classic form: value [B,S,h,d], locations [B,Q,h,T,2], weights [B,Q,h,T] -> [B,Q,h*d]."""
    return _attend(value, None, locations, weights, [n for s in shapes for n in s], list(points))


def forward_fused(
    value: Tensor, shapes: Levels, reference: Tensor, offsets: Tensor, logits: Tensor, points: tuple[int, ...]
) -> Tensor:
    """From raw offsets [B,Q,h,T,2], logits [B,Q,h,T] and references [B,Q,L,2|4]."""
    return _attend(value, reference, offsets, logits, [n for s in shapes for n in s], list(points))


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
def _forward_kernel(
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
def _backward_kernel(
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


@lru_cache(maxsize=64)
def _level_table(flat: tuple[int, ...], points: tuple[int, ...], device: torch.device) -> Tensor:
    rows, start = [], 0
    for h, w, n in zip(flat[::2], flat[1::2], points):
        rows.append([h, w, start, n])
        start += h * w
    return torch.tensor(rows, dtype=torch.int32, device=device)


@lru_cache(maxsize=64)
def _tile_order(flat: tuple[int, ...], device: torch.device) -> Tensor:
    """Positions of all levels, 4 x 8 tile by 4 x 8 tile: int32 [S]."""
    parts, start = [], 0
    for h, w in zip(flat[::2], flat[1::2]):
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        tile = (y // 4) * (-(-w // 8)) + x // 8
        parts.append(torch.argsort(tile.reshape(-1), stable=True) + start)
        start += h * w
    return torch.cat(parts).to(device=device, dtype=torch.int32)


def _launch(
    value: Tensor, reference: Tensor | None, xy: Tensor, shapes: Sequence[int], points: Sequence[int]
) -> tuple[tuple[int, int], dict[str, object], Tensor, Tensor]:
    """Grid, the launch arguments that both kernels share, the level table and the order of the queries."""
    b, q, h, t, _ = xy.shape
    d = value.shape[3]
    padded = triton.next_power_of_2(d)
    # 1024 numbers of a corner a program: 8 in each of 128 threads. Fewer queries where the card would not be filled.
    block = max(8, min(64, 1024 // padded))
    if triton.cdiv(q, block) * b * h < 2 * multiprocessors(value.device):
        block = max(8, block // 2)
    flat = tuple(shapes)
    ordered = q == value.shape[1] and q > block
    levels = _level_table(flat, tuple(points), value.device)
    arguments: dict[str, object] = {
        "L": len(points),
        "T": t,
        "TP": triton.next_power_of_2(t),
        "D": d,
        "DP": padded,
        "MODE": 0 if reference is None else reference.shape[-1],
        "ORDERED": ordered,
        "BLOCK": block,
        "num_warps": 4,
    }
    order = _tile_order(flat, value.device) if ordered else levels
    return (triton.cdiv(q, block), b * h), arguments, levels, order


def _readable(value: Tensor, queries: int) -> Tensor:
    """Head-major where the samples outweigh the copy; otherwise any strides with contiguous channels."""
    if value.stride(3) != 1 or (queries * 4 >= value.shape[1] and value.stride(1) != value.shape[3]):
        return value.transpose(1, 2).contiguous().transpose(1, 2)
    return value


@torch.library.custom_op("zoo_kernels::ms_deform_attention_triton", mutates_args=())
def _attend(
    value: Tensor,
    reference: Tensor | None,
    xy: Tensor,
    weights: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
) -> Tensor:
    b, _, h, d = value.shape
    q = xy.shape[1]
    out = torch.empty(b, q, h * d, dtype=value.dtype, device=value.device)
    if out.numel() == 0:
        return out
    value, xy, weights = _readable(value, q), xy.contiguous(), weights.contiguous()
    grid, arguments, levels, order = _launch(value, reference, xy, shapes, points)
    reference = weights if reference is None else reference.contiguous()
    strides = (value.stride(0), value.stride(1), value.stride(2))
    _forward_kernel[grid](value, reference, xy, weights, levels, order, out, *strides, q, h, **arguments)
    return out


@_attend.register_fake
def _(value, reference, xy, weights, shapes, points):
    return value.new_empty(value.shape[0], xy.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("zoo_kernels::ms_deform_attention_triton_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    value: Tensor,
    reference: Tensor | None,
    xy: Tensor,
    weights: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    need_value: bool,
    need_reference: bool,
    need_samples: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, s, h, d = value.shape
    q = xy.shape[1]
    mode = 0 if reference is None else reference.shape[-1]
    samples = need_samples or need_reference
    atomic = need_value and not torch.are_deterministic_algorithms_enabled()
    grad_value = torch.zeros((b, h, s, d) if atomic else 0, dtype=torch.float32, device=value.device)
    partial = torch.zeros(
        (b, q, h, len(points), mode) if need_reference else 0, dtype=torch.float32, device=value.device
    )
    grad_xy = torch.empty(xy.shape if samples else 0, dtype=xy.dtype, device=xy.device)
    grad_weights = torch.empty(weights.shape if samples else 0, dtype=weights.dtype, device=weights.device)
    half = samples and mode and weights.dtype != torch.float32
    scratch = torch.empty_like(grad_weights, dtype=torch.float32) if half else grad_weights
    if b * q and (samples or atomic):
        readable, xy_, weights_ = _readable(value, q), xy.contiguous(), weights.contiguous()
        grid, arguments, levels, order = _launch(value, reference, xy, shapes, points)
        _backward_kernel[grid](
            grad.contiguous(),
            readable,
            weights_ if reference is None else reference.contiguous(),
            xy_,
            weights_,
            levels,
            order,
            grad_value,
            partial,
            grad_xy,
            grad_weights,
            scratch,
            readable.stride(0),
            readable.stride(1),
            readable.stride(2),
            s,
            q,
            h,
            SAMPLES=samples,
            REFERENCE=need_reference,
            ATOMIC=atomic,
            **arguments,
        )
    if need_value and not atomic:
        grad_value = _ordered_value_gradient(grad, value, reference, xy, weights, shapes, points)
    elif need_value:
        grad_value = grad_value.transpose(1, 2).to(value.dtype, memory_format=torch.contiguous_format)
    grad_reference = partial.sum(2) if need_reference else partial
    if reference is not None:
        grad_reference = grad_reference.to(reference.dtype)
    return grad_value, grad_reference, grad_xy, grad_weights


@_attend_backward.register_fake
def _(grad, value, reference, xy, weights, shapes, points, need_value, need_reference, need_samples):
    samples = need_samples or need_reference
    return (
        value.new_empty(value.shape if need_value else 0),
        value.new_empty(0) if reference is None else reference.new_empty(reference.shape if need_reference else 0),
        xy.new_empty(xy.shape if samples else 0),
        weights.new_empty(weights.shape if samples else 0),
    )


def _ordered_value_gradient(
    grad: Tensor,
    value: Tensor,
    reference: Tensor | None,
    xy: Tensor,
    weights: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
) -> Tensor:
    """The value's gradient without atomics."""
    if reference is not None:
        levels = tuple(zip(shapes[::2], shapes[1::2]))
        xy = eager.pixel_coordinates(reference.float(), xy.float(), levels, tuple(points))
        weights = weights.softmax(-1, dtype=torch.float32)
    return eager._attend_backward(grad, value, xy, weights, shapes, points, reference is None, True, False)[0]


def _setup(ctx, inputs, output):
    value, reference, xy, weights, ctx.shapes, ctx.points = inputs
    ctx.save_for_backward(value, reference, xy, weights)


def _backward(ctx, grad):
    need_value, need_reference, need_xy, need_weights = ctx.needs_input_grad[:4]
    dv, dr, dxy, dw = _attend_backward(
        grad, *ctx.saved_tensors, ctx.shapes, ctx.points, need_value, need_reference, need_xy or need_weights
    )
    return (
        dv if need_value else None,
        dr if need_reference else None,
        dxy if need_xy else None,
        dw if need_weights else None,
        None,
        None,
    )


_attend.register_autograd(_backward, setup_context=_setup)


def build_cases() -> dict[str, BuildCase]:
    """An encoder and a decoder call in bfloat16, as the build guard compiles them."""
    from zoo_kernels.ms_deform_attention import ms_deform_attention, ms_deform_attention_fused

    shapes = ((64, 64), (32, 32), (16, 16), (8, 8))
    total, half = sum(h * w for h, w in shapes), torch.bfloat16

    def samples(queries: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, queries, 8, 4, 4, 2), torch.zeros(1, queries, 8, 4, 4)

    value = torch.zeros(1, total, 8, 32, dtype=half)
    off_d, logits_d = (t.to(half) for t in samples(300))
    off_e, logits_e = (t.to(half) for t in samples(total))
    none = ("_forward_kernel", "_backward_kernel")
    return {
        "encoder": BuildCase(
            ms_deform_attention_fused,
            (value, shapes, torch.zeros(1, total, 4, 2), off_e, logits_e),
            no_tensor_cores=none,
        ),
        "decoder-boxes": BuildCase(
            ms_deform_attention_fused,
            (value, shapes, torch.zeros(1, 300, 4, 4), off_d, logits_d),
            no_tensor_cores=none,
        ),
        "locations": BuildCase(ms_deform_attention, (value, shapes, *samples(total)), no_tensor_cores=none),
        "head-dim-64": BuildCase(
            ms_deform_attention,
            (torch.zeros(1, total, 8, 64, dtype=half), shapes, *samples(total)),
            no_tensor_cores=none,
        ),
    }
