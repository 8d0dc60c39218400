"""Triton kernels of neighborhood attention in up to three dimensions (a map is one plane, a line a plane of height 1).

A program owns a tile of TY x TX queries of one plane and dilation group (the backward of keys: a tile of keys) and
walks over the box of keys that any of them sees, in blocks of BK; nothing outside the box is touched. Which keys a
query sees follows from its rank alone (``window``), so there is no mask in memory; on the first axis a tile has one
window.

Shapes: q, k [B, Z, Y, X, H, D], v [B, Z, Y, X, H, E] with any strides and a last one of 1; lse, delta [B, H, Z, Y, X]
float32; bias [H, 2 KZ - 1, 2 KY - 1, 2 KX - 1]. BD, BE are D, E rounded up to powers of two. Ranks count the members of
a dilation group.
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
def plane_of(t, tiles, Z, DZ: tl.constexpr):
    """Of tile number t, with ``tiles`` of them a plane: its plane, dilation group, rank and the group's length."""
    z = t // tiles
    group = z % DZ
    return z, group, z // DZ, (Z - group + DZ - 1) // DZ


@triton.jit
def tile_of(t, tiles_y, tiles_x, Y, X, DY: tl.constexpr, DX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr):
    """Of tile number t: its dilation group, first rank and the group's length, on each axis of its plane."""
    tx = t % tiles_x
    ty = t // tiles_x % tiles_y
    group = t // (tiles_x * tiles_y) % (DY * DX)
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
def block_ranks(j, low_z, low_y, low_x, planes, rows, width, KZ: tl.constexpr):
    """Ranks of the elements j of a box, flattened plane by plane and row by row, and which of them exist."""
    line = j // width
    plane = line // rows if KZ > 1 else j * 0
    return low_z + plane, low_y + line - plane * rows, low_x + j - line * width, line < planes * rows


@triton.jit
def bias_index(z, y, x, KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr):
    """Entry of the bias table for offsets between ranks of key and query."""
    return ((z + KZ - 1) * (2 * KY - 1) + y + KY - 1) * (2 * KX - 1) + x + KX - 1


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    out_ptr,
    lse_ptr,
    q_b,
    q_z,
    q_y,
    q_x,
    q_h,
    k_b,
    k_z,
    k_y,
    k_x,
    k_h,
    v_b,
    v_z,
    v_y,
    v_x,
    v_h,
    o_b,
    o_z,
    o_y,
    o_x,
    o_h,
    H,
    Z,
    Y,
    X,
    tiles_y,
    tiles_x,
    scale,
    KZ: tl.constexpr,
    KY: tl.constexpr,
    KX: tl.constexpr,
    DZ: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    SZ: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    CZ: tl.constexpr,
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
    pz, gz, qz, nz = plane_of(tl.program_id(0), tiles_y * tiles_x * DY * DX, Z, DZ)
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
        low_z, high_z = window(qz, nz, KZ, SZ, CZ)
        planes, rows, width = high_z - low_z, high_y - low_y, high_x - low_x
        py, px = gy + DY * qy, gx + DX * qx
        q = load_rows(q_ptr + b * q_b + h * q_h, pz * q_z + py * q_y + px * q_x, d, live, D, BD)
        k_ptr += b * k_b + h * k_h
        v_ptr += b * v_b + h * v_h
        bias_ptr += h * (2 * KZ - 1) * (2 * KY - 1) * (2 * KX - 1)
        top = tl.full((TY * TX,), HIDDEN, tl.float32)
        total = tl.zeros((TY * TX,), tl.float32)
        out = tl.zeros((TY * TX, BE), tl.float32)
        for j0 in range(0, planes * rows * width, BK):
            kz, ky, kx, real = block_ranks(j0 + tl.arange(0, BK), low_z, low_y, low_x, planes, rows, width, KZ)
            sz, sy, sx = gz + DZ * kz, gy + DY * ky, gx + DX * kx
            k = load_rows(k_ptr, sz * k_z + sy * k_y + sx * k_x, d, real, D, BD)
            v = load_rows(v_ptr, sz * v_z + sy * v_y + sx * v_x, e, real, E, BE)
            logits = matmul(q, tl.trans(k), PRECISION) * scale
            seen = (ky[None, :] >= start_y[:, None]) & (ky[None, :] < stop_y[:, None]) & real[None, :]
            seen = seen & (kx[None, :] >= start_x[:, None]) & (kx[None, :] < stop_x[:, None])
            if BIAS:
                off_y, off_x = ky[None, :] - qy[:, None], kx[None, :] - qx[:, None]
                at = bias_index((kz - qz)[None, :], off_y, off_x, KZ, KY, KX)
                logits += tl.load(bias_ptr + at, mask=seen, other=0.0).to(tl.float32)
            logits = tl.where(seen, logits * LOG2E, HIDDEN)
            raised = tl.maximum(top, tl.max(logits, 1))
            p = tl.where(seen, tl.exp2(logits - raised[:, None]), 0.0)
            shrink = tl.exp2(top - raised)
            total = total * shrink + tl.sum(p, 1)
            out = out * shrink[:, None] + matmul(p, v, PRECISION)
            top = raised
        total = tl.where(live, total, 1.0)
        store_rows(out_ptr + b * o_b + h * o_h, out / total[:, None], pz * o_z + py * o_y + px * o_x, e, live, E, BE)
        tl.store(lse_ptr + (((b * H + h) * Z + pz) * Y + py) * X + px, top + tl.log2(total), mask=live)
