"""Triton kernels of the non-causal forms: two passes over the tokens around a [D, E] state.

Keys and values are read once by ``state_kernel`` (split over the tokens, so that one image fills the card), the parts
are joined by ``join_kernel``, queries are read and outputs written once by ``output_kernel``. The backward mirrors it:
``query_grad_kernel`` (dq and the parts of the state's gradient), then ``key_grad_kernel`` (dk, dv).

Shapes: q [B, H, N, D], k [B, H, M, D], v [B, H, M, E] in any strides with a last one of 1; per batch and head (``bh``)
a state [D, E], a key row z [D] and a value row u [E], all float32. BD and BE are D and E rounded up to powers of two.

FORM 0: out = f(q) S * MULT, or over (f(q).z + eps) if NORM          (S, z: means over the keys)
FORM 1: out = q S + u                                                (InLine: S of centred values, scaled)
FORM 2: out = rot(f(q)) S (1 + 1/(w + eps)) - w u, w = f(q).z        (MALA)
FORM 3: out = softmax(q + z) S                                       (S = softmax(k)^T v; z = logsumexp(k) or 0)
MAP: 0 identity, 1 elu+1, 2 ReLU.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def matmul(a, b, PRECISION: tl.constexpr):
    """a @ b in the narrower of the two dtypes, with float32 accumulation; "ieee": in exact float32.

    The interpreter runs the latter: it has no bfloat16 product, and rounds to bfloat16 by cutting off.
    """
    if PRECISION == "ieee":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    if a.dtype == tl.float32:
        return tl.dot(a.to(b.dtype), b)
    return tl.dot(a, b.to(a.dtype))


@triton.jit
def narrow(x, like, PRECISION: tl.constexpr):
    """x in the dtype of an input, as an operand of matmul."""
    if PRECISION == "ieee":
        return x
    return x.to(like.dtype)


@triton.jit
def load_rows(ptr, rows, cols, row_stride, n_rows, COLS: tl.constexpr, BCOLS: tl.constexpr):
    """[rows, cols] of a matrix with unit column stride, zero outside."""
    p = ptr + rows[:, None] * row_stride + cols[None, :]
    if COLS == BCOLS:
        return tl.load(p, mask=rows[:, None] < n_rows, other=0.0)
    return tl.load(p, mask=(rows[:, None] < n_rows) & (cols[None, :] < COLS), other=0.0)


@triton.jit
def store_rows(ptr, x, rows, cols, row_stride, n_rows, COLS: tl.constexpr, BCOLS: tl.constexpr):
    p = ptr + rows[:, None] * row_stride + cols[None, :]
    if COLS == BCOLS:
        tl.store(p, x, mask=rows[:, None] < n_rows)
    else:
        tl.store(p, x, mask=(rows[:, None] < n_rows) & (cols[None, :] < COLS))


@triton.jit
def feature(x, MAP: tl.constexpr):
    """The feature map of a float32 block."""
    if MAP == 1:
        return tl.where(x > 0, x + 1.0, tl.exp(tl.minimum(x, 0.0)))
    if MAP == 2:
        return tl.maximum(x, 0.0)
    return x


@triton.jit
def feature_slope(x, MAP: tl.constexpr):
    """Derivative of the feature map."""
    if MAP == 1:
        return tl.where(x > 0, 1.0, tl.exp(tl.minimum(x, 0.0)))
    if MAP == 2:
        return tl.where(x > 0, 1.0, 0.0)
    return tl.full(x.shape, 1.0, tl.float32)


@triton.jit
def swap_pairs(x, BN: tl.constexpr, BD: tl.constexpr):
    """(x0, x1) -> (-x1, x0) on channel pairs."""
    x0, x1 = tl.split(tl.reshape(x, (BN, BD // 2, 2)))
    return tl.reshape(tl.join(-x1, x0), (BN, BD))


@triton.jit
def state_kernel(
    k_ptr,
    v_ptr,
    sin_ptr,
    cos_ptr,
    part_ptr,
    key_ptr,
    value_ptr,
    top_ptr,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    H,
    M,
    per_split,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    FORM: tl.constexpr,
    MAP: tl.constexpr,
    ROTATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Parts of the state: [bh, split, BD, BE], key sums, value sums, and for FORM 3 the column maxima."""
    split, splits, bh = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    k_ptr += (bh // H).to(tl.int64) * k_b + (bh % H).to(tl.int64) * k_h
    v_ptr += (bh // H).to(tl.int64) * v_b + (bh % H).to(tl.int64) * v_h
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    state = tl.zeros((BD, BE), tl.float32)
    keys = tl.zeros((BD,), tl.float32)
    values = tl.zeros((BE,), tl.float32)
    top = tl.full((BD,), -1e38, tl.float32)
    first = split * per_split
    for start in range(first, tl.minimum(first + per_split, M), BN):
        n = start + tl.arange(0, BN)
        k_in = load_rows(k_ptr, n, d, k_n, M, D, BD)
        v = load_rows(v_ptr, n, e, v_n, M, E, BE)
        k = k_in.to(tl.float32)
        if FORM == 3:
            k = tl.where(n[:, None] < M, k, -1e38)
            raised = tl.maximum(top, tl.max(k, 0))
            shrink = tl.exp(top - raised)
            # Rows past the end stay zero even where a whole column lies below the mark.
            k = tl.where(n[:, None] < M, tl.exp(k - raised[None, :]), 0.0)
            state *= shrink[:, None]
            keys = keys * shrink + tl.sum(k, 0)
            top = raised
        else:
            k = tl.where(n[:, None] < M, feature(k, MAP), 0.0)
            keys += tl.sum(k, 0)
            values += tl.sum(v.to(tl.float32), 0)
            if ROTATE:
                sin = load_rows(sin_ptr, n, d, D, M, D, BD).to(tl.float32)
                cos = load_rows(cos_ptr, n, d, D, M, D, BD).to(tl.float32)
                k = k * cos + swap_pairs(k, BN, BD) * sin
        state += matmul(tl.trans(k), v, PRECISION)
    at = bh.to(tl.int64) * splits + split
    tl.store(part_ptr + at * BD * BE + d[:, None] * BE + e[None, :], state)
    tl.store(key_ptr + at * BD + d, keys)
    if FORM == 1 or FORM == 2:
        tl.store(value_ptr + at * BE + e, values)
    if FORM == 3:
        tl.store(top_ptr + at * BD + d, top)


@triton.jit
def join_kernel(
    part_ptr,
    key_ptr,
    value_ptr,
    top_ptr,
    state_ptr,
    z_ptr,
    u_ptr,
    splits,
    M,
    scale,
    BD: tl.constexpr,
    BE: tl.constexpr,
    FORM: tl.constexpr,
):
    """Second stage: add up the parts in a fixed order and bring state, z and u to what the form's output needs."""
    bh = tl.program_id(0).to(tl.int64)
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    at = d[:, None] * BE + e[None, :]
    state = tl.zeros((BD, BE), tl.float32)
    keys = tl.zeros((BD,), tl.float32)
    values = tl.zeros((BE,), tl.float32)
    top = tl.full((BD,), -1e38, tl.float32)
    for split in range(0, splits):
        i = bh * splits + split
        part = tl.load(part_ptr + i * BD * BE + at)
        key = tl.load(key_ptr + i * BD + d)
        if FORM == 3:
            other = tl.load(top_ptr + i * BD + d)
            raised = tl.maximum(top, other)
            mine, theirs = tl.exp(top - raised), tl.exp(other - raised)
            state = state * mine[:, None] + part * theirs[:, None]
            keys = keys * mine + key * theirs
            top = raised
        else:
            state += part
            keys += key
        if FORM == 1 or FORM == 2:
            values += tl.load(value_ptr + i * BE + e)
    if FORM == 0:
        state = state / M
        keys = keys / M
    if FORM == 1:
        state = (state - keys[:, None] * (values[None, :] / M)) * (scale / M)
    if FORM == 2:
        state = state * (scale / M)
        keys = keys * (scale / M)
    if FORM == 1 or FORM == 2:
        tl.store(u_ptr + bh * BE + e, values / M)
    if FORM == 3:
        keys = tl.maximum(keys, 1e-38)  # padded channels, whose keys are all zero, and nothing else, stay near zero
        state = state / keys[:, None]
        keys = top + tl.log(keys)  # logsumexp: the backward needs it, the output only if EXP
    tl.store(state_ptr + bh * BD * BE + at, state)
    tl.store(z_ptr + bh * BD + d, keys)


@triton.jit
def query_weights(
    q_in,
    z,
    sin_ptr,
    cos_ptr,
    n,
    d,
    N,
    D: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    FORM: tl.constexpr,
    MAP: tl.constexpr,
    ROTATE: tl.constexpr,
    EXP: tl.constexpr,
):
    """From a block of q: what multiplies the state [BN, BD], and the plain features (the same unless rotated)."""
    q = q_in.to(tl.float32)
    if FORM == 3:
        if EXP:
            q += z[None, :]
        q = tl.where(d[None, :] < D, q, -1e38)
        q = tl.exp(q - tl.max(q, 1)[:, None])
        q = q / tl.sum(q, 1)[:, None]
        return q, q
    plain = feature(q, MAP)
    if BD != D:
        plain = tl.where(d[None, :] < D, plain, 0.0)
    q = plain
    if ROTATE:
        sin = load_rows(sin_ptr, n, d, D, N, D, BD).to(tl.float32)
        cos = load_rows(cos_ptr, n, d, D, N, D, BD).to(tl.float32)
        q = plain * cos + swap_pairs(plain, BN, BD) * sin
    return q, plain


@triton.jit
def output_kernel(
    q_ptr,
    sin_ptr,
    cos_ptr,
    state_ptr,
    z_ptr,
    u_ptr,
    out_ptr,
    q_b,
    q_h,
    q_n,
    o_b,
    o_h,
    o_n,
    H,
    N,
    mult,
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    FORM: tl.constexpr,
    MAP: tl.constexpr,
    NORM: tl.constexpr,
    ROTATE: tl.constexpr,
    EXP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries of one batch element and head."""
    bh = tl.program_id(1)
    q_ptr += (bh // H).to(tl.int64) * q_b + (bh % H).to(tl.int64) * q_h
    out_ptr += (bh // H).to(tl.int64) * o_b + (bh % H).to(tl.int64) * o_h
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    q_in = load_rows(q_ptr, n, d, q_n, N, D, BD)
    z = tl.load(z_ptr + bh.to(tl.int64) * BD + d)
    state = tl.load(state_ptr + bh.to(tl.int64) * BD * BE + d[:, None] * BE + e[None, :])
    q, plain = query_weights(q_in, z, sin_ptr, cos_ptr, n, d, N, D, BD, BN, FORM, MAP, ROTATE, EXP)
    out = matmul(q, narrow(state, q_in, PRECISION), PRECISION)
    if FORM == 0:
        if NORM:
            out = out / (tl.sum(plain * z[None, :], 1) + eps)[:, None]
        else:
            out = out * mult
    if FORM == 1:
        out += tl.load(u_ptr + bh * BE + e)[None, :]
    if FORM == 2:
        w = tl.sum(plain * z[None, :], 1)
        u = tl.load(u_ptr + bh * BE + e)
        out = out * (1.0 + 1.0 / (w + eps))[:, None] - w[:, None] * u[None, :]
    store_rows(out_ptr, out.to(out_ptr.dtype.element_ty), n, e, o_n, N, E, BE)


@triton.jit
def query_grad_kernel(
    q_ptr,
    do_ptr,
    sin_ptr,
    cos_ptr,
    state_ptr,
    z_ptr,
    u_ptr,
    dq_ptr,
    dpart_ptr,
    dz_ptr,
    du_ptr,
    q_b,
    q_h,
    q_n,
    o_b,
    o_h,
    o_n,
    g_b,
    g_h,
    g_n,
    H,
    N,
    per_split,
    mult,
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    FORM: tl.constexpr,
    MAP: tl.constexpr,
    NORM: tl.constexpr,
    ROTATE: tl.constexpr,
    EXP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq, and of one split the gradients of state, z and u."""
    split, splits, bh = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    q_ptr += b * q_b + h * q_h
    do_ptr += b * o_b + h * o_h
    dq_ptr += b * g_b + h * g_h
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    z = tl.load(z_ptr + bh.to(tl.int64) * BD + d)
    state = tl.load(state_ptr + bh.to(tl.int64) * BD * BE + d[:, None] * BE + e[None, :])
    dstate = tl.zeros((BD, BE), tl.float32)
    dz = tl.zeros((BD,), tl.float32)
    du = tl.zeros((BE,), tl.float32)
    first = split * per_split
    for start in range(first, tl.minimum(first + per_split, N), BN):
        n = start + tl.arange(0, BN)
        q_in = load_rows(q_ptr, n, d, q_n, N, D, BD)
        do_in = load_rows(do_ptr, n, e, o_n, N, E, BE)  # zero past the end: no contribution
        do = do_in.to(tl.float32)
        low = narrow(state, q_in, PRECISION)
        q, plain = query_weights(q_in, z, sin_ptr, cos_ptr, n, d, N, D, BD, BN, FORM, MAP, ROTATE, EXP)
        # out = a (q S) + ...: the row factor a goes to float32 values, and so never out of a half dtype's range.
        a = tl.full((BN,), 1.0, tl.float32)
        dw = tl.zeros((BN,), tl.float32)
        if FORM == 0 and NORM:
            raw = matmul(q, low, PRECISION)
            a = 1.0 / (tl.sum(plain * z[None, :], 1) + eps)
            dw = -tl.sum(do * raw, 1) * a * a
        if FORM == 1:
            du += tl.sum(do, 0)
        if FORM == 2:
            raw = matmul(q, low, PRECISION)
            w = tl.sum(plain * z[None, :], 1)
            u = tl.load(u_ptr + bh * BE + e)
            a = 1.0 + 1.0 / (w + eps)
            dw = -tl.sum(do * raw, 1) / ((w + eps) * (w + eps)) - tl.sum(do * u[None, :], 1)
            du -= tl.sum(do * w[:, None], 0)
        dstate += matmul(tl.trans(q * a[:, None]), do_in, PRECISION)
        dq = matmul(do_in, tl.trans(low), PRECISION) * (a * mult)[:, None]
        if FORM == 3:
            dq = q * (dq - tl.sum(q * dq, 1)[:, None])
            dz += tl.sum(dq, 0)
        else:
            if ROTATE:
                sin = load_rows(sin_ptr, n, d, D, N, D, BD).to(tl.float32)
                cos = load_rows(cos_ptr, n, d, D, N, D, BD).to(tl.float32)
                dq = dq * cos - swap_pairs(dq * sin, BN, BD)
            dq += dw[:, None] * z[None, :]
            dz += tl.sum(plain * dw[:, None], 0)
            dq = dq * feature_slope(q_in.to(tl.float32), MAP)
        store_rows(dq_ptr, dq.to(dq_ptr.dtype.element_ty), n, d, g_n, N, D, BD)
    at = bh.to(tl.int64) * splits + split
    tl.store(dpart_ptr + at * BD * BE + d[:, None] * BE + e[None, :], dstate)
    tl.store(dz_ptr + at * BD + d, dz)
    tl.store(du_ptr + at * BE + e, du)


@triton.jit
def key_grad_kernel(
    k_ptr,
    v_ptr,
    sin_ptr,
    cos_ptr,
    z_ptr,
    dstate_ptr,
    factor_ptr,
    dkey_ptr,
    dvalue_ptr,
    dk_ptr,
    dv_ptr,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    gk_b,
    gk_h,
    gk_n,
    gv_b,
    gv_h,
    gv_n,
    H,
    M,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    FORM: tl.constexpr,
    MAP: tl.constexpr,
    ROTATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk and dv of one block of keys; ``factor`` [bh] restores dstate's magnitude, by which it comes divided."""
    bh = tl.program_id(1)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    dk_ptr += b * gk_b + h * gk_h
    dv_ptr += b * gv_b + h * gv_h
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k_in = load_rows(k_ptr, n, d, k_n, M, D, BD)
    v = load_rows(v_ptr, n, e, v_n, M, E, BE)
    dstate = tl.load(dstate_ptr + bh.to(tl.int64) * BD * BE + d[:, None] * BE + e[None, :])
    factor = tl.load(factor_ptr + bh)
    dkey = tl.load(dkey_ptr + bh * BD + d)
    k = k_in.to(tl.float32)
    dk = matmul(v, tl.trans(dstate), PRECISION) * factor
    if FORM == 3:
        z = tl.load(z_ptr + bh * BD + d)
        k = tl.exp(tl.minimum(k - z[None, :], 0.0))
        if BD != D:
            k = tl.where(d[None, :] < D, k, 0.0)
        dk = k * (dk + dkey[None, :])
    else:
        slope = feature_slope(k, MAP)
        k = feature(k, MAP)
        if BD != D:
            k = tl.where(d[None, :] < D, k, 0.0)
        if ROTATE:
            sin = load_rows(sin_ptr, n, d, D, M, D, BD).to(tl.float32)
            cos = load_rows(cos_ptr, n, d, D, M, D, BD).to(tl.float32)
            k = k * cos + swap_pairs(k, BN, BD) * sin
            dk = dk * cos - swap_pairs(dk * sin, BN, BD)
        dk = (dk + dkey[None, :]) * slope
    dv = matmul(k, narrow(dstate, v, PRECISION), PRECISION) * factor
    if FORM == 1 or FORM == 2:
        dv += tl.load(dvalue_ptr + bh * BE + e)[None, :]
    store_rows(dk_ptr, dk.to(dk_ptr.dtype.element_ty), n, d, gk_n, M, D, BD)
    store_rows(dv_ptr, dv.to(dv_ptr.dtype.element_ty), n, e, gv_n, M, E, BE)
