"""Triton kernels of neighborhood attention in two dimensions (a line is a map of height 1).

A program owns a tile of TY x TX queries of one dilation group (the backward of keys: a tile of keys) and walks over
the rectangle of keys that any of them sees, in blocks of BK; nothing outside the rectangle is touched. Which keys a
query sees follows from its rank alone (``window``), so there is no mask in memory.

Shapes: q, k [B, Y, X, H, D], v [B, Y, X, H, E] with any strides and a last one of 1; lse, delta [B, H, Y, X] float32;
bias [H, 2 KY - 1, 2 KX - 1]. BD, BE are D, E rounded up to powers of two. Ranks count the members of a dilation group.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Logit of a hidden key: finite, so that a block without any seen key makes no NaN.
HIDDEN = tl.constexpr(-1e30)
LOG2E = tl.constexpr(1.4426950408889634)


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
def window(rank, n, K: tl.constexpr, STRIDE: tl.constexpr, CAUSAL: tl.constexpr):
    """First rank and one past the last rank that queries of these ranks see in a group of n members."""
    first = rank // STRIDE * STRIDE
    if CAUSAL:
        leader = tl.minimum(first + (STRIDE - 1), n - 1)
        return tl.maximum(leader - (K - 1), 0), rank + 1
    leader = tl.minimum(first + STRIDE // 2, n - 1)
    start = tl.minimum(tl.maximum(leader - K // 2, 0), n - K)
    return start, start + K


@triton.jit
def seen_from(first, last, n, K: tl.constexpr, STRIDE: tl.constexpr, CAUSAL: tl.constexpr):
    """A range of query ranks outside which no query sees a key of rank first..last."""
    if CAUSAL:
        return first, tl.minimum(n, last + K)
    low = tl.maximum(first - (K - 1 - K // 2) - (STRIDE - 1), 0)
    high = tl.minimum(last + K // 2 + STRIDE, n)
    # A window moved inside the map reaches further than half its length.
    low = tl.where(first < K, 0, low)
    high = tl.where(last >= n - K, n, high)
    return low, high


@triton.jit
def tile_of(t, tiles_y, tiles_x, Y, X, DY: tl.constexpr, DX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr):
    """Of tile number t: its dilation group, first rank and the group's length, on each axis."""
    tx = t % tiles_x
    ty = t // tiles_x % tiles_y
    group = t // (tiles_x * tiles_y)
    gy, gx = group // DX, group % DX
    return gy, gx, ty * TY, tx * TX, (Y - gy + DY - 1) // DY, (X - gx + DX - 1) // DX


@triton.jit
def load_rows(ptr, offsets, cols, mask, COLS: tl.constexpr, BCOLS: tl.constexpr):
    """[rows, cols] from row offsets, zero where masked."""
    p = ptr + offsets[:, None] + cols[None, :]
    if COLS == BCOLS:
        return tl.load(p, mask=mask[:, None], other=0.0)
    return tl.load(p, mask=mask[:, None] & (cols[None, :] < COLS), other=0.0)


@triton.jit
def store_rows(ptr, x, offsets, cols, mask, COLS: tl.constexpr, BCOLS: tl.constexpr):
    p = ptr + offsets[:, None] + cols[None, :]
    x = x.to(ptr.dtype.element_ty)
    if COLS == BCOLS:
        tl.store(p, x, mask=mask[:, None])
    else:
        tl.store(p, x, mask=mask[:, None] & (cols[None, :] < COLS))


@triton.jit
def block_ranks(j, low_y, low_x, width, rows):
    """Ranks of the elements j of a rectangle, flattened row by row, and which of them exist."""
    y = j // width
    return low_y + y, low_x + j - y * width, y < rows


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    out_ptr,
    lse_ptr,
    q_b,
    q_y,
    q_x,
    q_h,
    k_b,
    k_y,
    k_x,
    k_h,
    v_b,
    v_y,
    v_x,
    v_h,
    o_b,
    o_y,
    o_x,
    o_h,
    H,
    Y,
    X,
    tiles_y,
    tiles_x,
    scale,
    KY: tl.constexpr,
    KX: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    CY: tl.constexpr,
    CX: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
    BK: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Output and log-sum-exp of one tile of queries."""
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    gy, gx, y0, x0, ny, nx = tile_of(tl.program_id(0), tiles_y, tiles_x, Y, X, DY, DX, TY, TX)
    if y0 < ny and x0 < nx:
        i, d, e = tl.arange(0, TY * TX), tl.arange(0, BD), tl.arange(0, BE)
        qy, qx = y0 + i // TX, x0 + i % TX
        live = (qy < ny) & (qx < nx)
        start_y, stop_y = window(qy, ny, KY, SY, CY)
        start_x, stop_x = window(qx, nx, KX, SX, CX)
        last_y, last_x = tl.minimum(y0 + TY, ny) - 1, tl.minimum(x0 + TX, nx) - 1
        low_y, _ = window(y0, ny, KY, SY, CY)
        _, high_y = window(last_y, ny, KY, SY, CY)
        low_x, _ = window(x0, nx, KX, SX, CX)
        _, high_x = window(last_x, nx, KX, SX, CX)
        rows, width = high_y - low_y, high_x - low_x
        py, px = gy + DY * qy, gx + DX * qx
        q = load_rows(q_ptr + b * q_b + h * q_h, py * q_y + px * q_x, d, live, D, BD)
        k_ptr += b * k_b + h * k_h
        v_ptr += b * v_b + h * v_h
        bias_ptr += h * (2 * KY - 1) * (2 * KX - 1)
        top = tl.full((TY * TX,), HIDDEN, tl.float32)
        total = tl.zeros((TY * TX,), tl.float32)
        out = tl.zeros((TY * TX, BE), tl.float32)
        for j0 in range(0, rows * width, BK):
            ky, kx, real = block_ranks(j0 + tl.arange(0, BK), low_y, low_x, width, rows)
            sy, sx = gy + DY * ky, gx + DX * kx
            k = load_rows(k_ptr, sy * k_y + sx * k_x, d, real, D, BD)
            v = load_rows(v_ptr, sy * v_y + sx * v_x, e, real, E, BE)
            logits = matmul(q, tl.trans(k), PRECISION) * scale
            seen = (ky[None, :] >= start_y[:, None]) & (ky[None, :] < stop_y[:, None]) & real[None, :]
            seen = seen & (kx[None, :] >= start_x[:, None]) & (kx[None, :] < stop_x[:, None])
            if BIAS:
                at = (ky[None, :] - qy[:, None] + KY - 1) * (2 * KX - 1) + kx[None, :] - qx[:, None] + KX - 1
                logits += tl.load(bias_ptr + at, mask=seen, other=0.0).to(tl.float32)
            logits = tl.where(seen, logits * LOG2E, HIDDEN)
            raised = tl.maximum(top, tl.max(logits, 1))
            p = tl.where(seen, tl.exp2(logits - raised[:, None]), 0.0)
            shrink = tl.exp2(top - raised)
            total = total * shrink + tl.sum(p, 1)
            out = out * shrink[:, None] + matmul(p, v, PRECISION)
            top = raised
        total = tl.where(live, total, 1.0)
        store_rows(out_ptr + b * o_b + h * o_h, out / total[:, None], py * o_y + px * o_x, e, live, E, BE)
        tl.store(lse_ptr + ((b * H + h) * Y + py) * X + px, top + tl.log2(total), mask=live)


@triton.jit
def query_grad_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    out_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    pairs_ptr,
    q_b,
    q_y,
    q_x,
    q_h,
    k_b,
    k_y,
    k_x,
    k_h,
    v_b,
    v_y,
    v_x,
    v_h,
    o_b,
    o_y,
    o_x,
    o_h,
    do_b,
    do_y,
    do_x,
    do_h,
    dq_b,
    dq_y,
    dq_x,
    dq_h,
    B,
    H,
    Y,
    X,
    tiles_y,
    tiles_x,
    per_part,
    scale,
    KY: tl.constexpr,
    KX: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    CY: tl.constexpr,
    CX: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
    BK: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """dq and delta of one tile of queries, for ``per_part`` batch elements one after the other.

    With a bias the gradient of the logits is summed over these elements: pairs [part, H, tile, TY*TX, PAIRS], its last
    axis the keys of the tile's rectangle. The program reads back only what it wrote itself.
    """
    h, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    t = tl.program_id(0)
    gy, gx, y0, x0, ny, nx = tile_of(t, tiles_y, tiles_x, Y, X, DY, DX, TY, TX)
    if y0 < ny and x0 < nx:
        i, d, e = tl.arange(0, TY * TX), tl.arange(0, BD), tl.arange(0, BE)
        qy, qx = y0 + i // TX, x0 + i % TX
        live = (qy < ny) & (qx < nx)
        start_y, stop_y = window(qy, ny, KY, SY, CY)
        start_x, stop_x = window(qx, nx, KX, SX, CX)
        last_y, last_x = tl.minimum(y0 + TY, ny) - 1, tl.minimum(x0 + TX, nx) - 1
        low_y, _ = window(y0, ny, KY, SY, CY)
        _, high_y = window(last_y, ny, KY, SY, CY)
        low_x, _ = window(x0, nx, KX, SX, CX)
        _, high_x = window(last_x, nx, KX, SX, CX)
        rows, width = high_y - low_y, high_x - low_x
        py, px = gy + DY * qy, gx + DX * qx
        bias_ptr += h * (2 * KY - 1) * (2 * KX - 1)
        pairs_ptr += ((part * H + h) * tl.num_programs(0) + t) * (TY * TX) * PAIRS
        first = (part * per_part).to(tl.int64)
        for bi in range(first, tl.minimum(first + per_part, B)):
            b = tl.cast(bi, tl.int64)
            q = load_rows(q_ptr + b * q_b + h * q_h, py * q_y + px * q_x, d, live, D, BD)
            do = load_rows(do_ptr + b * do_b + h * do_h, py * do_y + px * do_x, e, live, E, BE)
            o = load_rows(out_ptr + b * o_b + h * o_h, py * o_y + px * o_x, e, live, E, BE)
            at_row = ((b * H + h) * Y + py) * X + px
            delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
            tl.store(delta_ptr + at_row, delta, mask=live)
            lse = tl.load(lse_ptr + at_row, mask=live, other=0.0)
            dq = tl.zeros((TY * TX, BD), tl.float32)
            for j0 in range(0, rows * width, BK):
                j = j0 + tl.arange(0, BK)
                ky, kx, real = block_ranks(j, low_y, low_x, width, rows)
                sy, sx = gy + DY * ky, gx + DX * kx
                k = load_rows(k_ptr + b * k_b + h * k_h, sy * k_y + sx * k_x, d, real, D, BD)
                v = load_rows(v_ptr + b * v_b + h * v_h, sy * v_y + sx * v_x, e, real, E, BE)
                logits = matmul(q, tl.trans(k), PRECISION) * scale
                seen = (ky[None, :] >= start_y[:, None]) & (ky[None, :] < stop_y[:, None]) & real[None, :]
                seen = seen & (kx[None, :] >= start_x[:, None]) & (kx[None, :] < stop_x[:, None]) & live[:, None]
                if BIAS:
                    at = (ky[None, :] - qy[:, None] + KY - 1) * (2 * KX - 1) + kx[None, :] - qx[:, None] + KX - 1
                    logits += tl.load(bias_ptr + at, mask=seen, other=0.0).to(tl.float32)
                p = tl.where(seen, tl.exp2(logits * LOG2E - lse[:, None]), 0.0)
                ds = p * (matmul(do, tl.trans(v), PRECISION) - delta[:, None])
                if BIAS:
                    to = pairs_ptr + i[:, None] * PAIRS + j[None, :]
                    fits = (j[None, :] < PAIRS) & (i[:, None] >= 0)
                    later = j * 0 + b > first
                    tl.store(to, tl.load(to, mask=fits & later[None, :], other=0.0) + ds, mask=fits)
                dq += matmul(ds, k, PRECISION)
            store_rows(dq_ptr + b * dq_b + h * dq_h, dq * scale, py * dq_y + px * dq_x, d, live, D, BD)
            if BIAS:
                tl.debug_barrier()  # what one thread stored in pairs another may load in the next round


@triton.jit
def bias_grad_kernel(
    pairs_ptr,
    dbias_ptr,
    parts,
    H,
    Y,
    X,
    tiles_y,
    tiles_x,
    tiles,
    KY: tl.constexpr,
    KX: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    CY: tl.constexpr,
    CX: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
    PAIRS: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
):
    """Second stage: BR entries of the bias table, each summed over all queries that have a key at its offset."""
    entry, h = tl.program_id(0) * BR + tl.arange(0, BR), tl.program_id(1).to(tl.int64)
    off_y, off_x = entry // (2 * KX - 1) - (KY - 1), entry % (2 * KX - 1) - (KX - 1)
    total = tl.zeros((BR, BN), tl.float32)
    for n0 in range(0, Y * X, BN):
        n = n0 + tl.arange(0, BN)
        py, px = n // X, n % X
        gy, gx, qy, qx = py % DY, px % DX, py // DY, px // DX
        ny, nx = (Y - gy + DY - 1) // DY, (X - gx + DX - 1) // DX
        start_y, stop_y = window(qy, ny, KY, SY, CY)
        start_x, stop_x = window(qx, nx, KX, SX, CX)
        ky, kx = qy[None, :] + off_y[:, None], qx[None, :] + off_x[:, None]
        seen = (ky >= start_y[None, :]) & (ky < stop_y[None, :]) & (py < Y)[None, :]
        seen = seen & (kx >= start_x[None, :]) & (kx < stop_x[None, :])
        y0, x0 = qy // TY * TY, qx // TX * TX
        low_y, _ = window(y0, ny, KY, SY, CY)
        low_x, _ = window(x0, nx, KX, SX, CX)
        _, high_x = window(tl.minimum(x0 + TX, nx) - 1, nx, KX, SX, CX)
        j = (ky - low_y[None, :]) * (high_x - low_x)[None, :] + kx - low_x[None, :]
        t = ((gy * DX + gx) * tiles_y + y0 // TY) * tiles_x + x0 // TX
        i = (qy - y0) * TX + qx - x0
        for part in range(0, parts):
            at = (((part * H + h) * tiles + t) * (TY * TX) + i) * PAIRS
            total += tl.load(pairs_ptr + at[None, :] + j, mask=seen, other=0.0)
    entries = (2 * KY - 1) * (2 * KX - 1)
    tl.store(dbias_ptr + h * entries + entry, tl.sum(total, 1), mask=entry < entries)


@triton.jit
def key_grad_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    q_b,
    q_y,
    q_x,
    q_h,
    k_b,
    k_y,
    k_x,
    k_h,
    v_b,
    v_y,
    v_x,
    v_h,
    do_b,
    do_y,
    do_x,
    do_h,
    dk_b,
    dk_y,
    dk_x,
    dk_h,
    dv_b,
    dv_y,
    dv_x,
    dv_h,
    H,
    Y,
    X,
    tiles_y,
    tiles_x,
    scale,
    KY: tl.constexpr,
    KX: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    CY: tl.constexpr,
    CX: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
    BK: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk and dv of one tile of keys, over the queries that may see any of them."""
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    gy, gx, y0, x0, ny, nx = tile_of(tl.program_id(0), tiles_y, tiles_x, Y, X, DY, DX, TY, TX)
    if y0 < ny and x0 < nx:
        i, d, e = tl.arange(0, TY * TX), tl.arange(0, BD), tl.arange(0, BE)
        ky, kx = y0 + i // TX, x0 + i % TX
        live = (ky < ny) & (kx < nx)
        low_y, high_y = seen_from(y0, tl.minimum(y0 + TY, ny) - 1, ny, KY, SY, CY)
        low_x, high_x = seen_from(x0, tl.minimum(x0 + TX, nx) - 1, nx, KX, SX, CX)
        rows, width = high_y - low_y, high_x - low_x
        sy, sx = gy + DY * ky, gx + DX * kx
        k = load_rows(k_ptr + b * k_b + h * k_h, sy * k_y + sx * k_x, d, live, D, BD)
        v = load_rows(v_ptr + b * v_b + h * v_h, sy * v_y + sx * v_x, e, live, E, BE)
        q_ptr += b * q_b + h * q_h
        do_ptr += b * do_b + h * do_h
        bias_ptr += h * (2 * KY - 1) * (2 * KX - 1)
        dk = tl.zeros((TY * TX, BD), tl.float32)
        dv = tl.zeros((TY * TX, BE), tl.float32)
        for j0 in range(0, rows * width, BK):
            qy, qx, real = block_ranks(j0 + tl.arange(0, BK), low_y, low_x, width, rows)
            py, px = gy + DY * qy, gx + DX * qx
            q = load_rows(q_ptr, py * q_y + px * q_x, d, real, D, BD)
            do = load_rows(do_ptr, py * do_y + px * do_x, e, real, E, BE)
            at_row = ((b * H + h) * Y + py) * X + px
            lse = tl.load(lse_ptr + at_row, mask=real, other=0.0)
            delta = tl.load(delta_ptr + at_row, mask=real, other=0.0)
            start_y, stop_y = window(qy, ny, KY, SY, CY)
            start_x, stop_x = window(qx, nx, KX, SX, CX)
            logits = matmul(k, tl.trans(q), PRECISION) * scale  # [keys, queries]
            seen = (ky[:, None] >= start_y[None, :]) & (ky[:, None] < stop_y[None, :]) & real[None, :]
            seen = seen & (kx[:, None] >= start_x[None, :]) & (kx[:, None] < stop_x[None, :]) & live[:, None]
            if BIAS:
                at = (ky[:, None] - qy[None, :] + KY - 1) * (2 * KX - 1) + kx[:, None] - qx[None, :] + KX - 1
                logits += tl.load(bias_ptr + at, mask=seen, other=0.0).to(tl.float32)
            p = tl.where(seen, tl.exp2(logits * LOG2E - lse[None, :]), 0.0)
            dv += matmul(p, do, PRECISION)
            ds = p * (matmul(v, tl.trans(do), PRECISION) - delta[None, :])
            dk += matmul(ds, q, PRECISION)
        store_rows(dk_ptr + b * dk_b + h * dk_h, dk * scale, sy * dk_y + sx * dk_x, d, live, D, BD)
        store_rows(dv_ptr + b * dv_b + h * dv_h, dv, sy * dv_y + sx * dv_x, e, live, E, BE)
