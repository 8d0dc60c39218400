"""Triton kernels of TaylorShift: weights a x^2 + b x + c of x = q.k, divided by their sum (arXiv:2403.02920).

Direct form: a program owns a block of rows and walks over the columns. Linear form: the second-order features are never
stored. With x_i the entries of a row, a x^2 = a sum_i q_i k_i (q.k), so that slice i of the state, [D, E], is made of
keys times their own channel i; slice D has the plain keys, for the first order.

Shapes: q [B, H, N, D], k [B, H, M, D], v [B, H, M, E] in any strides with a last one of 1; state [bh, D+1, BD, BE], its
key sums z [bh, D+1, BD] and value sums u [bh, BE], float32. Rows are divided by their lengths as they are read
(NORMALIZE), and q multiplied by its head's temperature.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoo_kernels.linear_attention.kernels import load_rows, store_rows
from zoo_kernels.linear_attention.kernels_causal import product

#: Length below which a row counts as this long, as in torch.nn.functional.normalize.
SHORTEST = tl.constexpr(1e-12)


@triton.jit
def inverse_length(x, NORMALIZE: tl.constexpr):
    """One over the rows' lengths, or ones."""
    x = x.to(tl.float32)
    squares = tl.sum(x * x, 1)
    if NORMALIZE:
        return 1.0 / tl.maximum(tl.sqrt(squares), SHORTEST)
    return tl.full(squares.shape, 1.0, tl.float32)


@triton.jit
def through_length(dx, x, inv, NORMALIZE: tl.constexpr):
    """From the gradient of unit rows x to that of the rows they were made of."""
    if NORMALIZE:
        along = tl.where(inv < 1.0 / SHORTEST, tl.sum(dx * x, 1), 0.0)
        return (dx - x * along[:, None]) * inv[:, None]
    return dx


@triton.jit
def column(x, d, i, D: tl.constexpr):
    """Channel i of every row; ones for i = D."""
    return tl.where(i < D, tl.sum(tl.where(d[None, :] == i, x, 0.0), 1), 1.0)


@triton.jit
def direct_output_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    heat_ptr,
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
    M,
    a,
    b,
    c,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEAT: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Outputs of a block of queries, and one over the sums of their weights [bh, N]."""
    bh = tl.program_id(1)
    ib, ih = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    k_ptr += ib * k_b + ih * k_h
    v_ptr += ib * v_b + ih * v_h
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    q = load_rows(q_ptr + ib * q_b + ih * q_h, n, d, q_n, N, D, BD)
    of_q = inverse_length(q, NORMALIZE)
    if HEAT:
        of_q *= tl.load(heat_ptr + ih)
    out = tl.zeros((BN, BE), tl.float32)
    total = tl.zeros((BN,), tl.float32)
    for start in range(0, M, BN):
        m = start + tl.arange(0, BN)
        k = load_rows(k_ptr, m, d, k_n, M, D, BD)
        v = load_rows(v_ptr, m, e, v_n, M, E, BE)
        x = product(q, tl.trans(k), OPERANDS) * of_q[:, None] * inverse_length(k, NORMALIZE)[None, :]
        w = tl.where(m[None, :] < M, (a * x + b) * x + c, 0.0)
        total += tl.sum(w, 1)
        out += product(w, v, OPERANDS)
    inv = 1.0 / tl.where(n < N, total, 1.0)
    tl.store(inv_ptr + bh.to(tl.int64) * N + n, inv, mask=n < N)
    out *= inv[:, None]
    store_rows(out_ptr + ib * o_b + ih * o_h, out.to(out_ptr.dtype.element_ty), n, e, o_n, N, E, BE)


@triton.jit
def direct_query_grad_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    heat_ptr,
    out_ptr,
    do_ptr,
    inv_ptr,
    delta_ptr,
    dheat_ptr,
    dq_ptr,
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
    M,
    a,
    b,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEAT: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """dq; the gradients of the sums of weights and of the temperature, row by row [bh, N]."""
    bh = tl.program_id(1)
    ib, ih = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    k_ptr += ib * k_b + ih * k_h
    v_ptr += ib * v_b + ih * v_h
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = bh.to(tl.int64) * N + n
    q = load_rows(q_ptr + ib * q_b + ih * q_h, n, d, q_n, N, D, BD)
    do = load_rows(do_ptr + ib * do_b + ih * do_h, n, e, do_n, N, E, BE)
    out = load_rows(out_ptr + ib * o_b + ih * o_h, n, e, o_n, N, E, BE)
    inv = tl.load(inv_ptr + row, mask=n < N, other=0.0)
    delta = -tl.sum(do.to(tl.float32) * out.to(tl.float32), 1) * inv
    tl.store(delta_ptr + row, delta, mask=n < N)
    of_q = inverse_length(q, NORMALIZE)
    heat = tl.load(heat_ptr + ih) if HEAT else 1.0
    dq = tl.zeros((BN, BD), tl.float32)
    for start in range(0, M, BN):
        m = start + tl.arange(0, BN)
        k = load_rows(k_ptr, m, d, k_n, M, D, BD)
        v = load_rows(v_ptr, m, e, v_n, M, E, BE)
        of_k = inverse_length(k, NORMALIZE)
        x = product(q, tl.trans(k), OPERANDS) * (of_q * heat)[:, None] * of_k[None, :]
        dw = product(do, tl.trans(v), OPERANDS) * inv[:, None] + delta[:, None]
        dx = tl.where(m[None, :] < M, dw * (2.0 * a * x + b), 0.0)
        dq += product(dx * of_k[None, :], k, OPERANDS)
    unit = q.to(tl.float32) * of_q[:, None]
    if HEAT:
        tl.store(dheat_ptr + row, tl.sum(unit * dq, 1), mask=n < N)
    dq = through_length(dq * heat, unit, of_q, NORMALIZE)
    store_rows(dq_ptr + ib * dq_b + ih * dq_h, dq.to(dq_ptr.dtype.element_ty), n, d, dq_n, N, D, BD)


@triton.jit
def direct_key_grad_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    heat_ptr,
    do_ptr,
    inv_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
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
    M,
    a,
    b,
    c,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEAT: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """dk and dv of a block of keys."""
    bh = tl.program_id(1)
    ib, ih = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    q_ptr += ib * q_b + ih * q_h
    do_ptr += ib * do_b + ih * do_h
    row = bh.to(tl.int64) * N
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    m = tl.program_id(0) * BN + tl.arange(0, BN)
    k = load_rows(k_ptr + ib * k_b + ih * k_h, m, d, k_n, M, D, BD)
    v = load_rows(v_ptr + ib * v_b + ih * v_h, m, e, v_n, M, E, BE)
    of_k = inverse_length(k, NORMALIZE)
    heat = tl.load(heat_ptr + ih) if HEAT else 1.0
    dk = tl.zeros((BN, BD), tl.float32)
    dv = tl.zeros((BN, BE), tl.float32)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        q = load_rows(q_ptr, n, d, q_n, N, D, BD)
        do = load_rows(do_ptr, n, e, do_n, N, E, BE)
        inv = tl.load(inv_ptr + row + n, mask=n < N, other=0.0)  # zero: a query past the end gives nothing
        delta = tl.load(delta_ptr + row + n, mask=n < N, other=0.0)
        of_q = inverse_length(q, NORMALIZE) * heat
        x = product(k, tl.trans(q), OPERANDS) * of_k[:, None] * of_q[None, :]  # [keys, queries]
        dv += product(((a * x + b) * x + c) * inv[None, :], do, OPERANDS)
        dw = product(v, tl.trans(do), OPERANDS) * inv[None, :] + delta[None, :]
        dk += product(dw * (2.0 * a * x + b) * of_q[None, :], q, OPERANDS)
    unit = k.to(tl.float32) * of_k[:, None]
    dk = through_length(dk, unit, of_k, NORMALIZE)
    store_rows(dk_ptr + ib * dk_b + ih * dk_h, dk.to(dk_ptr.dtype.element_ty), m, d, dk_n, M, D, BD)
    store_rows(dv_ptr + ib * dv_b + ih * dv_h, dv.to(dv_ptr.dtype.element_ty), m, e, dv_n, M, E, BE)


@triton.jit
def second_order_state_kernel(
    x_ptr,
    y_ptr,
    heat_ptr,
    inv_ptr,
    delta_ptr,
    part_ptr,
    z_ptr,
    u_ptr,
    x_b,
    x_h,
    x_n,
    y_b,
    y_h,
    y_n,
    H,
    N,
    per_split,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEAT: tl.constexpr,
    QUERIES: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Slice i of the state over one split: of keys and values, or of queries and output gradients over their sums.

    part [bh, split, D+1, BD, BE], z [bh, split, D+1, BD] and u [bh, split, BE].
    """
    i, split, bh = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    ib, ih = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    x_ptr += ib * x_b + ih * x_h
    y_ptr += ib * y_b + ih * y_h
    row = bh.to(tl.int64) * N
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    state = tl.zeros((BD, BE), tl.float32)
    z = tl.zeros((BD,), tl.float32)
    u = tl.zeros((BE,), tl.float32)
    first = split * per_split
    for start in range(first, tl.minimum(first + per_split, N), BN):
        n = start + tl.arange(0, BN)
        x_in = load_rows(x_ptr, n, d, x_n, N, D, BD)
        y = load_rows(y_ptr, n, e, y_n, N, E, BE)
        scale = inverse_length(x_in, NORMALIZE)
        if HEAT and QUERIES:
            scale *= tl.load(heat_ptr + ih)
        x = x_in.to(tl.float32) * scale[:, None]
        x *= column(x, d, i, D)[:, None]
        if QUERIES:
            inv = tl.load(inv_ptr + row + n, mask=n < N, other=0.0)
            delta = tl.load(delta_ptr + row + n, mask=n < N, other=0.0)
            z += tl.sum(x * delta[:, None], 0)
            scaled = y.to(tl.float32) * inv[:, None]
            u += tl.sum(scaled, 0)
            state += product(tl.trans(x), scaled, OPERANDS)
        else:
            z += tl.sum(x, 0)
            u += tl.sum(y.to(tl.float32), 0)
            state += product(tl.trans(x), y, OPERANDS)
    at = bh.to(tl.int64) * tl.num_programs(1) + split
    if i == D:
        tl.store(u_ptr + at * BE + e, u)
    at = at * (D + 1) + i
    tl.store(part_ptr + at * BD * BE + d[:, None] * BE + e[None, :], state)
    tl.store(z_ptr + at * BD + d, z)


@triton.jit
def second_order_output_kernel(
    q_ptr,
    heat_ptr,
    state_ptr,
    z_ptr,
    u_ptr,
    out_ptr,
    inv_ptr,
    q_b,
    q_h,
    q_n,
    o_b,
    o_h,
    o_n,
    H,
    N,
    M,
    a,
    b,
    c,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEAT: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Outputs of a block of queries from all slices, and one over the sums of their weights [bh, N]."""
    bh = tl.program_id(1)
    ib, ih = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    q_in = load_rows(q_ptr + ib * q_b + ih * q_h, n, d, q_n, N, D, BD)
    scale = inverse_length(q_in, NORMALIZE)
    if HEAT:
        scale *= tl.load(heat_ptr + ih)
    q = q_in.to(tl.float32) * scale[:, None]
    out = c * tl.load(u_ptr + bh * BE + e)[None, :] + tl.zeros((BN, BE), tl.float32)
    total = c * M + tl.zeros((BN,), tl.float32)
    slices = bh.to(tl.int64) * (D + 1)
    for i in range(0, D + 1):
        state = tl.load(state_ptr + (slices + i) * BD * BE + d[:, None] * BE + e[None, :])
        z = tl.load(z_ptr + (slices + i) * BD + d)
        x = q * (column(q, d, i, D) * tl.where(i < D, a, b))[:, None]
        out += product(x, state, OPERANDS)
        total += tl.sum(x * z[None, :], 1)
    inv = 1.0 / tl.where(n < N, total, 1.0)
    tl.store(inv_ptr + bh.to(tl.int64) * N + n, inv, mask=n < N)
    out *= inv[:, None]
    store_rows(out_ptr + ib * o_b + ih * o_h, out.to(out_ptr.dtype.element_ty), n, e, o_n, N, E, BE)


@triton.jit
def second_order_grad_kernel(
    x_ptr,
    y_ptr,
    out_ptr,
    heat_ptr,
    state_ptr,
    z_ptr,
    u_ptr,
    inv_ptr,
    delta_ptr,
    dheat_ptr,
    dx_ptr,
    dy_ptr,
    x_b,
    x_h,
    x_n,
    y_b,
    y_h,
    y_n,
    o_b,
    o_h,
    o_n,
    dx_b,
    dx_h,
    dx_n,
    dy_b,
    dy_h,
    dy_n,
    H,
    N,
    a,
    b,
    c,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEAT: tl.constexpr,
    QUERIES: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """QUERIES: dq and the gradients of weight sums and temperature, from y = do and the keys' state. Else dk and dv,
    from y = v and the queries' state. Slice i gives channel i; that the state is symmetric in its channels doubles it.
    """
    bh = tl.program_id(1)
    ib, ih = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = bh.to(tl.int64) * N + n
    x_in = load_rows(x_ptr + ib * x_b + ih * x_h, n, d, x_n, N, D, BD)
    y = load_rows(y_ptr + ib * y_b + ih * y_h, n, e, y_n, N, E, BE).to(tl.float32)
    length = inverse_length(x_in, NORMALIZE)
    unit = x_in.to(tl.float32) * length[:, None]
    x = unit
    heat = 1.0
    total = tl.full((BN,), 1.0, tl.float32)  # what multiplies z
    if QUERIES:
        out = load_rows(out_ptr + ib * o_b + ih * o_h, n, e, o_n, N, E, BE).to(tl.float32)
        inv = tl.load(inv_ptr + row, mask=n < N, other=0.0)
        total = -tl.sum(y * out, 1) * inv
        tl.store(delta_ptr + row, total, mask=n < N)
        y *= inv[:, None]
        if HEAT:
            heat = tl.load(heat_ptr + ih)
            x = unit * heat
    dx = tl.zeros((BN, BD), tl.float32)
    dy = tl.zeros((BN, BE), tl.float32)
    slices = bh.to(tl.int64) * (D + 1)
    for i in range(0, D + 1):
        state = tl.load(state_ptr + (slices + i) * BD * BE + d[:, None] * BE + e[None, :])
        z = tl.load(z_ptr + (slices + i) * BD + d)
        channel = column(x, d, i, D)
        through = product(y, tl.trans(state), OPERANDS) + total[:, None] * z[None, :]
        dx += through * (channel * tl.where(i < D, 2.0 * a, b))[:, None]
        if not QUERIES:
            dy += product(x * (channel * tl.where(i < D, a, b))[:, None], state, OPERANDS)
    if QUERIES and HEAT:
        tl.store(dheat_ptr + row, tl.sum(unit * dx, 1), mask=n < N)
    dx = through_length(dx * heat, unit, length, NORMALIZE)
    store_rows(dx_ptr + ib * dx_b + ih * dx_h, dx.to(dx_ptr.dtype.element_ty), n, d, dx_n, N, D, BD)
    if not QUERIES:
        dy += c * tl.load(u_ptr + bh * BE + e)[None, :]
        store_rows(dy_ptr + ib * dy_b + ih * dy_h, dy.to(dy_ptr.dtype.element_ty), n, e, dy_n, N, E, BE)
