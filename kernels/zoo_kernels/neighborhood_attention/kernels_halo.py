"""Triton kernels of HaloNet's blocked attention (arXiv:2103.12731).

A program owns up to TQ queries of one block and goes through the rows of the window around it, WIN keys each (BW with
padding). Keys outside the map are loaded as zeros and take part in the softmax. The backward of keys owns keys of one
block and goes through the queries of all blocks whose windows reach it.

Shapes: q [B, QY, QX, H, D], k [B, KY, KX, H, D], v [B, KY, KX, H, E] with any strides and a last one of 1; logits of
the position by row and by column of the window, high and wide [B, QY, QX, H, WIN], and lse, delta [B, H, QY, QX], in
float32. A block has SIDE x SIDE queries and BLOCK x BLOCK keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoo_kernels.neighborhood_attention.kernels import HIDDEN, LOG2E, load_rows, matmul, store_rows


@triton.jit
def block_of(t, tiles, blocks_x):
    """Of tile number t, with ``tiles`` of them a block: its block's row and column, and its number in the block."""
    block = t // tiles
    return block // blocks_x, block % blocks_x, t % tiles


@triton.jit
def halo_forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    high_ptr,
    wide_ptr,
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
    QY,
    QX,
    KY,
    KX,
    scale,
    BLOCK: tl.constexpr,
    SIDE: tl.constexpr,
    HALO: tl.constexpr,
    WIN: tl.constexpr,
    TQ: tl.constexpr,
    BW: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Output and log-sum-exp (base 2) of one tile of queries."""
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    by, bx, tile = block_of(tl.program_id(0), (SIDE * SIDE + TQ - 1) // TQ, KX // BLOCK)
    d, e, c = tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, BW)
    i = tile * TQ + tl.arange(0, TQ)
    live = i < SIDE * SIDE
    qy, qx = by * SIDE + i // SIDE, bx * SIDE + i % SIDE
    kx = bx * BLOCK - HALO + c
    column = c < WIN
    inside = column & (kx >= 0) & (kx < KX)
    q = load_rows(q_ptr + b * q_b + h * q_h, qy * q_y + qx * q_x, d, live, D, BD)
    at = (((b * QY + qy) * QX + qx) * H + h) * WIN
    if WIDE:
        across = tl.load(wide_ptr + at[:, None] + c[None, :], mask=live[:, None] & column[None, :], other=0.0)
    top = tl.full((TQ,), HIDDEN, tl.float32)
    total = tl.zeros((TQ,), tl.float32)
    out = tl.zeros((TQ, BE), tl.float32)
    for r in range(0, WIN):
        ky = tl.full((BW,), 0, tl.int32) + by * BLOCK - HALO + r
        real = inside & (ky >= 0) & (ky < KY)
        k = load_rows(k_ptr + b * k_b + h * k_h, ky * k_y + kx * k_x, d, real, D, BD)
        v = load_rows(v_ptr + b * v_b + h * v_h, ky * v_y + kx * v_x, e, real, E, BE)
        logits = matmul(q, tl.trans(k), PRECISION) * scale
        if WIDE:
            logits += across
        if HIGH:
            logits += tl.load(high_ptr + at + r, mask=live, other=0.0)[:, None]
        logits = tl.where(column[None, :], logits * LOG2E, HIDDEN)
        raised = tl.maximum(top, tl.max(logits, 1))
        p = tl.where(column[None, :], tl.exp2(logits - raised[:, None]), 0.0)
        shrink = tl.exp2(top - raised)
        total = total * shrink + tl.sum(p, 1)
        out = out * shrink[:, None] + matmul(p, v, PRECISION)
        top = raised
    store_rows(out_ptr + b * o_b + h * o_h, out / total[:, None], qy * o_y + qx * o_x, e, live, E, BE)
    tl.store(lse_ptr + ((b * H + h) * QY + qy) * QX + qx, top + tl.log2(total), mask=live)


@triton.jit
def halo_query_grad_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    high_ptr,
    wide_ptr,
    out_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    dhigh_ptr,
    dwide_ptr,
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
    H,
    QY,
    QX,
    KY,
    KX,
    scale,
    BLOCK: tl.constexpr,
    SIDE: tl.constexpr,
    HALO: tl.constexpr,
    WIN: tl.constexpr,
    TQ: tl.constexpr,
    BW: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq, delta, and the gradients of the position logits, of one tile of queries."""
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    by, bx, tile = block_of(tl.program_id(0), (SIDE * SIDE + TQ - 1) // TQ, KX // BLOCK)
    d, e, c = tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, BW)
    i = tile * TQ + tl.arange(0, TQ)
    live = i < SIDE * SIDE
    qy, qx = by * SIDE + i // SIDE, bx * SIDE + i % SIDE
    kx = bx * BLOCK - HALO + c
    column = c < WIN
    inside = column & (kx >= 0) & (kx < KX)
    shown = live[:, None] & column[None, :]
    q = load_rows(q_ptr + b * q_b + h * q_h, qy * q_y + qx * q_x, d, live, D, BD)
    do = load_rows(do_ptr + b * do_b + h * do_h, qy * do_y + qx * do_x, e, live, E, BE)
    o = load_rows(out_ptr + b * o_b + h * o_h, qy * o_y + qx * o_x, e, live, E, BE)
    row = ((b * H + h) * QY + qy) * QX + qx
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta_ptr + row, delta, mask=live)
    lse = tl.load(lse_ptr + row, mask=live, other=0.0)
    at = (((b * QY + qy) * QX + qx) * H + h) * WIN
    if WIDE:
        across = tl.load(wide_ptr + at[:, None] + c[None, :], mask=shown, other=0.0)
        dacross = tl.zeros((TQ, BW), tl.float32)
    dq = tl.zeros((TQ, BD), tl.float32)
    for r in range(0, WIN):
        ky = tl.full((BW,), 0, tl.int32) + by * BLOCK - HALO + r
        real = inside & (ky >= 0) & (ky < KY)
        k = load_rows(k_ptr + b * k_b + h * k_h, ky * k_y + kx * k_x, d, real, D, BD)
        v = load_rows(v_ptr + b * v_b + h * v_h, ky * v_y + kx * v_x, e, real, E, BE)
        logits = matmul(q, tl.trans(k), PRECISION) * scale
        if WIDE:
            logits += across
        if HIGH:
            logits += tl.load(high_ptr + at + r, mask=live, other=0.0)[:, None]
        p = tl.where(shown, tl.exp2(logits * LOG2E - lse[:, None]), 0.0)
        ds = p * (matmul(do, tl.trans(v), PRECISION) - delta[:, None])
        if WIDE:
            dacross += ds
        if HIGH:
            tl.store(dhigh_ptr + at + r, tl.sum(ds, 1), mask=live)
        dq += matmul(ds, k, PRECISION)
    store_rows(dq_ptr + b * dq_b + h * dq_h, dq * scale, qy * dq_y + qx * dq_x, d, live, D, BD)
    if WIDE:
        tl.store(dwide_ptr + at[:, None] + c[None, :], dacross, mask=shown)


@triton.jit
def halo_key_grad_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    high_ptr,
    wide_ptr,
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
    QY,
    QX,
    KY,
    KX,
    scale,
    BLOCK: tl.constexpr,
    SIDE: tl.constexpr,
    HALO: tl.constexpr,
    WIN: tl.constexpr,
    TQ: tl.constexpr,
    TK: tl.constexpr,
    NEAR: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk and dv of one tile of keys, over the queries of the NEAR x NEAR blocks around it."""
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    by, bx, tile = block_of(tl.program_id(0), (BLOCK * BLOCK + TK - 1) // TK, KX // BLOCK)
    tiles: tl.constexpr = (SIDE * SIDE + TQ - 1) // TQ
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    m = tile * TK + tl.arange(0, TK)
    live = m < BLOCK * BLOCK
    ky, kx = by * BLOCK + m // BLOCK, bx * BLOCK + m % BLOCK
    k = load_rows(k_ptr + b * k_b + h * k_h, ky * k_y + kx * k_x, d, live, D, BD)
    v = load_rows(v_ptr + b * v_b + h * v_h, ky * v_y + kx * v_x, e, live, E, BE)
    dk = tl.zeros((TK, BD), tl.float32)
    dv = tl.zeros((TK, BE), tl.float32)
    for t in range(0, NEAR * NEAR * tiles):
        near = t // tiles
        oy, ox = by + near // NEAR - NEAR // 2, bx + near % NEAR - NEAR // 2
        i = t % tiles * TQ + tl.arange(0, TQ)
        qy, qx = oy * SIDE + i // SIDE, ox * SIDE + i % SIDE
        there = (i < SIDE * SIDE) & (qy >= 0) & (qy < QY) & (qx >= 0) & (qx < QX)
        wy, wx = ky - oy * BLOCK + HALO, kx - ox * BLOCK + HALO  # place in that block's window
        seen = (live & (wy >= 0) & (wy < WIN) & (wx >= 0) & (wx < WIN))[:, None] & there[None, :]
        q = load_rows(q_ptr + b * q_b + h * q_h, qy * q_y + qx * q_x, d, there, D, BD)
        do = load_rows(do_ptr + b * do_b + h * do_h, qy * do_y + qx * do_x, e, there, E, BE)
        row = ((b * H + h) * QY + qy) * QX + qx
        lse = tl.load(lse_ptr + row, mask=there, other=0.0)
        delta = tl.load(delta_ptr + row, mask=there, other=0.0)
        at = (((b * QY + qy) * QX + qx) * H + h) * WIN
        logits = matmul(k, tl.trans(q), PRECISION) * scale  # [keys, queries]
        if WIDE:
            logits += tl.load(wide_ptr + at[None, :] + wx[:, None], mask=seen, other=0.0)
        if HIGH:
            logits += tl.load(high_ptr + at[None, :] + wy[:, None], mask=seen, other=0.0)
        p = tl.where(seen, tl.exp2(logits * LOG2E - lse[None, :]), 0.0)
        dv += matmul(p, do, PRECISION)
        ds = p * (matmul(v, tl.trans(do), PRECISION) - delta[None, :])
        dk += matmul(ds, q, PRECISION)
    store_rows(dk_ptr + b * dk_b + h * dk_h, dk * scale, ky * dk_y + kx * dk_x, d, live, D, BD)
    store_rows(dv_ptr + b * dv_b + h * dv_h, dv, ky * dv_y + kx * dv_x, e, live, E, BE)
