"""Triton kernels of the causal forms, tiled as in Lightning Attention-2 (arXiv:2401.04658).

A program owns a segment of one head's tokens and walks over it in blocks of BN: pairs within a block through their
masked weights, everything before it through a [D, E] state that stays in registers. Segments start from the sum of all
before them: ``segment_kernel`` makes each segment's own state, ``scan_kernel`` turns these into prefixes (for the
gradient of the keys: suffixes, of queries and output gradients).

Shapes: q, k [B, H, N, D], v [B, H, N, E] in any strides with a last one of 1; states [bh, segment, BD, BE] and key
rows z [bh, segment, BD], float32. The weight of query i and key j is f(q_i).f(k_j) r^(i-j). Split at the border b
between blocks, r^(i-j) = r^(i-s) r^(s-b) r^(b-j) for the block of i starting at s and that of j ending at b: no power
is ever above one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoo_kernels.linear_attention.kernels import feature, feature_slope, load_rows, store_rows

#: Operands of a product: exact float32; bfloat16; float32 rounded to tf32, which has float16's digits and a wide range.
EXACT, BFLOAT16, TF32 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def product(a, b, OPERANDS: tl.constexpr):
    """a @ b with float32 accumulation."""
    if OPERANDS == BFLOAT16:
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    if OPERANDS == TF32:
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")


@triton.jit
def features(x, n, d, N, D: tl.constexpr, MAP: tl.constexpr):
    """f(x) in float32, zero in the rows and channels that do not exist."""
    return tl.where((n[:, None] < N) & (d[None, :] < D), feature(x.to(tl.float32), MAP), 0.0)


@triton.jit
def power(rate, lag):
    """decay^lag from the decay's binary logarithm."""
    return tl.exp2(rate * lag.to(tl.float32))


@triton.jit
def segment_kernel(
    x_ptr,
    y_ptr,
    inv_ptr,
    delta_ptr,
    rate_ptr,
    part_ptr,
    z_ptr,
    x_b,
    x_h,
    x_n,
    y_b,
    y_h,
    y_n,
    H,
    N,
    per_segment,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    MAP: tl.constexpr,
    NORM: tl.constexpr,
    DECAY: tl.constexpr,
    QUERIES: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """A segment's own state: of keys and values up to its end, or of queries and output gradients from its start."""
    segment, segments, bh = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    x_ptr += (bh // H).to(tl.int64) * x_b + (bh % H).to(tl.int64) * x_h
    y_ptr += (bh // H).to(tl.int64) * y_b + (bh % H).to(tl.int64) * y_h
    row = bh.to(tl.int64) * N
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    state = tl.zeros((BD, BE), tl.float32)
    z = tl.zeros((BD,), tl.float32)
    rate = tl.load(rate_ptr + bh % H) if DECAY else 0.0
    first = segment * per_segment
    blocks = tl.cdiv(tl.minimum(first + per_segment, N) - first, BN)
    for i in range(0, blocks):
        start = first + (blocks - 1 - i if QUERIES else i) * BN
        n = start + tl.arange(0, BN)
        x = features(load_rows(x_ptr, n, d, x_n, N, D, BD), n, d, N, D, MAP)
        y = load_rows(y_ptr, n, e, y_n, N, E, BE)
        if DECAY:
            x *= power(rate, n - start if QUERIES else start + BN - n)[:, None]
            step = tl.exp2(rate * BN)
            state *= step
            z *= step
        if QUERIES and NORM:
            inv = tl.load(inv_ptr + row + n, mask=n < N, other=0.0)
            delta = tl.load(delta_ptr + row + n, mask=n < N, other=0.0)
            z += tl.sum(x * delta[:, None], 0)
            state += product(tl.trans(x), y.to(tl.float32) * inv[:, None], OPERANDS)
        else:
            z += tl.sum(x, 0)
            state += product(tl.trans(x), y, OPERANDS)
    at = bh.to(tl.int64) * segments + segment
    tl.store(part_ptr + at * BD * BE + d[:, None] * BE + e[None, :], state)
    tl.store(z_ptr + at * BD + d, z)


@triton.jit
def scan_kernel(
    part_ptr,
    z_ptr,
    rate_ptr,
    segments,
    H,
    per_segment,
    BD: tl.constexpr,
    BE: tl.constexpr,
    ROWS: tl.constexpr,
    DECAY: tl.constexpr,
    SUFFIX: tl.constexpr,
):
    """In place: each segment's state becomes the sum of those before it (SUFFIX: after it), decayed on the way."""
    bh = tl.program_id(0)
    d, e = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, BE)
    state = tl.zeros((ROWS, BE), tl.float32)
    z = tl.zeros((ROWS,), tl.float32)
    step = tl.exp2(tl.load(rate_ptr + bh % H) * per_segment) if DECAY else 1.0
    for i in range(0, segments):
        at = bh.to(tl.int64) * segments + (segments - 1 - i if SUFFIX else i)
        to_state = part_ptr + at * BD * BE + d[:, None] * BE + e[None, :]
        own, own_z = tl.load(to_state), tl.load(z_ptr + at * BD + d)
        tl.store(to_state, state)
        tl.store(z_ptr + at * BD + d, z)
        state = state * step + own
        z = z * step + own_z


@triton.jit
def causal_output_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rate_ptr,
    prefix_ptr,
    z_ptr,
    out_ptr,
    inv_ptr,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    o_b,
    o_h,
    o_n,
    H,
    N,
    per_segment,
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    MAP: tl.constexpr,
    NORM: tl.constexpr,
    DECAY: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Outputs of one segment, and one over their denominators [bh, N]."""
    segment, segments, bh = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    out_ptr += b * o_b + h * o_h
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    at = bh.to(tl.int64) * segments + segment
    state = tl.load(prefix_ptr + at * BD * BE + d[:, None] * BE + e[None, :])
    z = tl.load(z_ptr + at * BD + d)
    rate = tl.load(rate_ptr + h) if DECAY else 0.0
    first = segment * per_segment
    for start in range(first, tl.minimum(first + per_segment, N), BN):
        n = start + tl.arange(0, BN)
        q = features(load_rows(q_ptr, n, d, q_n, N, D, BD), n, d, N, D, MAP)
        k = features(load_rows(k_ptr, n, d, k_n, N, D, BD), n, d, N, D, MAP)
        v = load_rows(v_ptr, n, e, v_n, N, E, BE)
        lag = n[:, None] - n[None, :]
        weights = tl.where(lag >= 0, product(q, tl.trans(k), OPERANDS), 0.0)
        if DECAY:
            weights *= power(rate, tl.maximum(lag, 0))
            q *= power(rate, n - start)[:, None]
            k *= power(rate, start + BN - n)[:, None]
        out = product(weights, v, OPERANDS) + product(q, state, OPERANDS)
        if NORM:
            inv = 1.0 / (tl.sum(weights, 1) + tl.sum(q * z[None, :], 1) + eps)
            out *= inv[:, None]
            tl.store(inv_ptr + bh.to(tl.int64) * N + n, inv, mask=n < N)
        store_rows(out_ptr, out.to(out_ptr.dtype.element_ty), n, e, o_n, N, E, BE)
        if DECAY:
            step = tl.exp2(rate * BN)
            state *= step
            z *= step
        state += product(tl.trans(k), v, OPERANDS)
        z += tl.sum(k, 0)


@triton.jit
def causal_query_grad_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    do_ptr,
    rate_ptr,
    prefix_ptr,
    z_ptr,
    inv_ptr,
    delta_ptr,
    dq_ptr,
    lag_ptr,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    o_b,
    o_h,
    o_n,
    do_b,
    do_h,
    do_n,
    dq_b,
    dq_h,
    dq_n,
    H,
    N,
    per_segment,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    MAP: tl.constexpr,
    NORM: tl.constexpr,
    DECAY: tl.constexpr,
    LAG: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """dq and the denominators' gradient ``delta`` [bh, N] of one segment.

    The gradient of weight (i, j) is inv_i do_i.v_j + delta_i. LAG: the sum of lag * weight * its gradient, for the
    part of the lag that lies in the query's block [bh, segment].
    """
    segment, segments, bh = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    out_ptr += b * o_b + h * o_h
    do_ptr += b * do_b + h * do_h
    dq_ptr += b * dq_b + h * dq_h
    row = bh.to(tl.int64) * N
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    at = bh.to(tl.int64) * segments + segment
    state = tl.load(prefix_ptr + at * BD * BE + d[:, None] * BE + e[None, :])
    z = tl.load(z_ptr + at * BD + d)
    rate = tl.load(rate_ptr + h) if DECAY else 0.0
    lags = tl.zeros((BN,), tl.float32)
    first = segment * per_segment
    for start in range(first, tl.minimum(first + per_segment, N), BN):
        n = start + tl.arange(0, BN)
        k = features(load_rows(k_ptr, n, d, k_n, N, D, BD), n, d, N, D, MAP)
        v = load_rows(v_ptr, n, e, v_n, N, E, BE)
        do = load_rows(do_ptr, n, e, do_n, N, E, BE)
        lag = n[:, None] - n[None, :]
        dw = product(do, tl.trans(v), OPERANDS)
        scaled = do.to(tl.float32)
        if NORM:
            inv = tl.load(inv_ptr + row + n, mask=n < N, other=0.0)
            out = load_rows(out_ptr, n, e, o_n, N, E, BE).to(tl.float32)
            delta = -tl.sum(scaled * out, 1) * inv
            tl.store(delta_ptr + row + n, delta, mask=n < N)
            dw = dw * inv[:, None] + delta[:, None]
            scaled *= inv[:, None]
        before = product(scaled, tl.trans(state), OPERANDS)
        if NORM:
            before += delta[:, None] * z[None, :]
        dw = tl.where(lag >= 0, dw, 0.0)
        if DECAY:
            dw *= power(rate, tl.maximum(lag, 0))
            before *= power(rate, n - start)[:, None]
        q_in = load_rows(q_ptr, n, d, q_n, N, D, BD)
        if LAG:
            q = features(q_in, n, d, N, D, MAP)
            lags += tl.sum(product(q, tl.trans(k), OPERANDS) * dw * lag.to(tl.float32), 1)
            lags += tl.sum(q * before, 1) * (n - start).to(tl.float32)
        dq = (before + product(dw, k, OPERANDS)) * feature_slope(q_in.to(tl.float32), MAP)
        store_rows(dq_ptr, dq.to(dq_ptr.dtype.element_ty), n, d, dq_n, N, D, BD)
        if DECAY:
            k *= power(rate, start + BN - n)[:, None]
            step = tl.exp2(rate * BN)
            state *= step
            z *= step
        state += product(tl.trans(k), v, OPERANDS)
        z += tl.sum(k, 0)
    if LAG:
        tl.store(lag_ptr + at, tl.sum(lags, 0))


@triton.jit
def causal_key_grad_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    do_ptr,
    rate_ptr,
    suffix_ptr,
    z_ptr,
    inv_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    lag_ptr,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    do_b,
    do_h,
    do_n,
    dk_b,
    dk_h,
    dk_n,
    dv_b,
    dv_h,
    dv_n,
    H,
    N,
    per_segment,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    MAP: tl.constexpr,
    NORM: tl.constexpr,
    DECAY: tl.constexpr,
    LAG: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """dk and dv of one segment, block by block from its end; LAG: for the part of the lag in the key's block."""
    segment, segments, bh = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    do_ptr += b * do_b + h * do_h
    dk_ptr += b * dk_b + h * dk_h
    dv_ptr += b * dv_b + h * dv_h
    row = bh.to(tl.int64) * N
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    at = bh.to(tl.int64) * segments + segment
    state = tl.load(suffix_ptr + at * BD * BE + d[:, None] * BE + e[None, :])
    z = tl.load(z_ptr + at * BD + d)
    rate = tl.load(rate_ptr + h) if DECAY else 0.0
    lags = tl.zeros((BN,), tl.float32)
    first = segment * per_segment
    blocks = tl.cdiv(tl.minimum(first + per_segment, N) - first, BN)
    for i in range(0, blocks):
        start = first + (blocks - 1 - i) * BN
        n = start + tl.arange(0, BN)
        lag = n[None, :] - n[:, None]  # [keys, queries]
        q = features(load_rows(q_ptr, n, d, q_n, N, D, BD), n, d, N, D, MAP)
        do = load_rows(do_ptr, n, e, do_n, N, E, BE)
        scaled = do.to(tl.float32)
        if NORM:
            inv = tl.load(inv_ptr + row + n, mask=n < N, other=0.0)
            delta = tl.load(delta_ptr + row + n, mask=n < N, other=0.0)
            scaled *= inv[:, None]
        # dv is finished first, so that little is held at a time.
        k = features(load_rows(k_ptr, n, d, k_n, N, D, BD), n, d, N, D, MAP)
        weights = tl.where(lag >= 0, product(k, tl.trans(q), OPERANDS), 0.0)
        if DECAY:
            weights *= power(rate, tl.maximum(lag, 0))
            k *= power(rate, start + BN - n)[:, None]
        dv = product(weights, scaled, OPERANDS) + product(k, state, OPERANDS)
        store_rows(dv_ptr, dv.to(dv_ptr.dtype.element_ty), n, e, dv_n, N, E, BE)
        v = load_rows(v_ptr, n, e, v_n, N, E, BE)
        after = product(v, tl.trans(state), OPERANDS)
        dw = product(v, tl.trans(do), OPERANDS)
        if NORM:
            after += z[None, :]
            dw = dw * inv[None, :] + delta[None, :]
        if LAG:
            lags += tl.sum(k * after, 1) * (start + BN - n).to(tl.float32)
        dw = tl.where(lag >= 0, dw, 0.0)
        if DECAY:
            dw *= power(rate, tl.maximum(lag, 0))
            after *= power(rate, start + BN - n)[:, None]
        k_in = load_rows(k_ptr, n, d, k_n, N, D, BD).to(tl.float32)
        dk = (after + product(dw, q, OPERANDS)) * feature_slope(k_in, MAP)
        store_rows(dk_ptr, dk.to(dk_ptr.dtype.element_ty), n, d, dk_n, N, D, BD)
        if DECAY:
            q *= power(rate, n - start)[:, None]
            step = tl.exp2(rate * BN)
            state *= step
            z *= step
        state += product(tl.trans(q), scaled, OPERANDS)
        if NORM:
            z += tl.sum(q * delta[:, None], 0)
    if LAG:
        tl.store(lag_ptr + at, tl.sum(lags, 0))
