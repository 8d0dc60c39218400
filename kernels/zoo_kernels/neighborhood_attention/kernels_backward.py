"""Triton kernels of the backward of neighborhood attention; shapes and names as in the forward's module."""

from __future__ import annotations

import triton
import triton.language as tl

from zoo_kernels.neighborhood_attention.kernels import (
    LOG2E,
    bias_index,
    block_ranks,
    load_rows,
    matmul,
    plane_of,
    seen_from,
    store_rows,
    tile_of,
    window,
)


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
    do_b,
    do_z,
    do_y,
    do_x,
    do_h,
    dq_b,
    dq_z,
    dq_y,
    dq_x,
    dq_h,
    B,
    H,
    Z,
    Y,
    X,
    tiles_y,
    tiles_x,
    per_part,
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
    PAIRS: tl.constexpr,
):
    """dq and delta of one tile of queries, for ``per_part`` batch elements one after the other.

    With a bias the gradient of the logits is summed over these elements: pairs [part, H, tile, TY*TX, PAIRS], its last
    axis the keys of the tile's rectangle. The program reads back only what it wrote itself.
    """
    h, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    t = tl.program_id(0)
    pz, gz, qz, nz = plane_of(t, tiles_y * tiles_x * DY * DX, Z, DZ)
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
        low_z, high_z = window(qz, nz, KZ, SZ, CZ)
        planes, rows, width = high_z - low_z, high_y - low_y, high_x - low_x
        py, px = gy + DY * qy, gx + DX * qx
        bias_ptr += h * (2 * KZ - 1) * (2 * KY - 1) * (2 * KX - 1)
        pairs_ptr += ((part * H + h) * tl.num_programs(0) + t) * (TY * TX) * PAIRS
        first = (part * per_part).to(tl.int64)
        for bi in range(first, tl.minimum(first + per_part, B)):
            b = tl.cast(bi, tl.int64)
            q = load_rows(q_ptr + b * q_b + h * q_h, pz * q_z + py * q_y + px * q_x, d, live, D, BD)
            do = load_rows(do_ptr + b * do_b + h * do_h, pz * do_z + py * do_y + px * do_x, e, live, E, BE)
            o = load_rows(out_ptr + b * o_b + h * o_h, pz * o_z + py * o_y + px * o_x, e, live, E, BE)
            at_row = (((b * H + h) * Z + pz) * Y + py) * X + px
            delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
            tl.store(delta_ptr + at_row, delta, mask=live)
            lse = tl.load(lse_ptr + at_row, mask=live, other=0.0)
            dq = tl.zeros((TY * TX, BD), tl.float32)
            for j0 in range(0, planes * rows * width, BK):
                j = j0 + tl.arange(0, BK)
                kz, ky, kx, real = block_ranks(j, low_z, low_y, low_x, planes, rows, width, KZ)
                sz, sy, sx = gz + DZ * kz, gy + DY * ky, gx + DX * kx
                k = load_rows(k_ptr + b * k_b + h * k_h, sz * k_z + sy * k_y + sx * k_x, d, real, D, BD)
                v = load_rows(v_ptr + b * v_b + h * v_h, sz * v_z + sy * v_y + sx * v_x, e, real, E, BE)
                logits = matmul(q, tl.trans(k), PRECISION) * scale
                seen = (ky[None, :] >= start_y[:, None]) & (ky[None, :] < stop_y[:, None]) & real[None, :]
                seen = seen & (kx[None, :] >= start_x[:, None]) & (kx[None, :] < stop_x[:, None]) & live[:, None]
                if BIAS:
                    off_y, off_x = ky[None, :] - qy[:, None], kx[None, :] - qx[:, None]
                    at = bias_index((kz - qz)[None, :], off_y, off_x, KZ, KY, KX)
                    logits += tl.load(bias_ptr + at, mask=seen, other=0.0).to(tl.float32)
                p = tl.where(seen, tl.exp2(logits * LOG2E - lse[:, None]), 0.0)
                ds = p * (matmul(do, tl.trans(v), PRECISION) - delta[:, None])
                if BIAS:
                    to = pairs_ptr + i[:, None] * PAIRS + j[None, :]
                    fits = (j[None, :] < PAIRS) & (i[:, None] >= 0)
                    later = j * 0 + b > first
                    tl.store(to, tl.load(to, mask=fits & later[None, :], other=0.0) + ds, mask=fits)
                dq += matmul(ds, k, PRECISION)
            store_rows(dq_ptr + b * dq_b + h * dq_h, dq * scale, pz * dq_z + py * dq_y + px * dq_x, d, live, D, BD)
            if BIAS:
                tl.debug_barrier()  # what one thread stored in pairs another may load in the next round


@triton.jit
def bias_grad_kernel(
    pairs_ptr,
    dbias_ptr,
    parts,
    H,
    Z,
    Y,
    X,
    tiles_y,
    tiles_x,
    tiles,
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
    PAIRS: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
):
    """Second stage: BR entries of the bias table, each summed over all queries that have a key at its offset."""
    entry, h = tl.program_id(0) * BR + tl.arange(0, BR), tl.program_id(1).to(tl.int64)
    line = entry // (2 * KX - 1)
    off_x = entry % (2 * KX - 1) - (KX - 1)
    off_y, off_z = line % (2 * KY - 1) - (KY - 1), line // (2 * KY - 1) - (KZ - 1)
    total = tl.zeros((BR, BN), tl.float32)
    for n0 in range(0, Z * Y * X, BN):
        n = n0 + tl.arange(0, BN)
        pz, py, px = n // (Y * X), n // X % Y, n % X
        gz, gy, gx, qz, qy, qx = pz % DZ, py % DY, px % DX, pz // DZ, py // DY, px // DX
        nz, ny, nx = (Z - gz + DZ - 1) // DZ, (Y - gy + DY - 1) // DY, (X - gx + DX - 1) // DX
        start_z, stop_z = window(qz, nz, KZ, SZ, CZ)
        start_y, stop_y = window(qy, ny, KY, SY, CY)
        start_x, stop_x = window(qx, nx, KX, SX, CX)
        kz, ky, kx = qz[None, :] + off_z[:, None], qy[None, :] + off_y[:, None], qx[None, :] + off_x[:, None]
        seen = (ky >= start_y[None, :]) & (ky < stop_y[None, :]) & (pz < Z)[None, :]
        seen = seen & (kx >= start_x[None, :]) & (kx < stop_x[None, :])
        seen = seen & (kz >= start_z[None, :]) & (kz < stop_z[None, :])
        y0, x0 = qy // TY * TY, qx // TX * TX
        low_y, _ = window(y0, ny, KY, SY, CY)
        _, high_y = window(tl.minimum(y0 + TY, ny) - 1, ny, KY, SY, CY)
        low_x, _ = window(x0, nx, KX, SX, CX)
        _, high_x = window(tl.minimum(x0 + TX, nx) - 1, nx, KX, SX, CX)
        rows, width = (high_y - low_y)[None, :], (high_x - low_x)[None, :]
        j = ((kz - start_z[None, :]) * rows + ky - low_y[None, :]) * width + kx - low_x[None, :]
        t = (((pz * DY + gy) * DX + gx) * tiles_y + y0 // TY) * tiles_x + x0 // TX
        i = (qy - y0) * TX + qx - x0
        for part in range(0, parts):
            at = (((part * H + h) * tiles + t) * (TY * TX) + i) * PAIRS
            total += tl.load(pairs_ptr + at[None, :] + j, mask=seen, other=0.0)
    entries = (2 * KZ - 1) * (2 * KY - 1) * (2 * KX - 1)
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
    do_b,
    do_z,
    do_y,
    do_x,
    do_h,
    dk_b,
    dk_z,
    dk_y,
    dk_x,
    dk_h,
    dv_b,
    dv_z,
    dv_y,
    dv_x,
    dv_h,
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
    """dk and dv of one tile of keys, over the queries that may see any of them."""
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    sz, gz, kz, nz = plane_of(tl.program_id(0), tiles_y * tiles_x * DY * DX, Z, DZ)
    gy, gx, y0, x0, ny, nx = tile_of(tl.program_id(0), tiles_y, tiles_x, Y, X, DY, DX, TY, TX)
    if y0 < ny and x0 < nx:
        i, d, e = tl.arange(0, TY * TX), tl.arange(0, BD), tl.arange(0, BE)
        ky, kx = y0 + i // TX, x0 + i % TX
        live = (ky < ny) & (kx < nx)
        low_y, high_y = seen_from(y0, tl.minimum(y0 + TY, ny) - 1, ny, KY, SY, CY)
        low_x, high_x = seen_from(x0, tl.minimum(x0 + TX, nx) - 1, nx, KX, SX, CX)
        low_z, high_z = seen_from(kz, kz, nz, KZ, SZ, CZ)
        planes, rows, width = high_z - low_z, high_y - low_y, high_x - low_x
        sy, sx = gy + DY * ky, gx + DX * kx
        k = load_rows(k_ptr + b * k_b + h * k_h, sz * k_z + sy * k_y + sx * k_x, d, live, D, BD)
        v = load_rows(v_ptr + b * v_b + h * v_h, sz * v_z + sy * v_y + sx * v_x, e, live, E, BE)
        q_ptr += b * q_b + h * q_h
        do_ptr += b * do_b + h * do_h
        bias_ptr += h * (2 * KZ - 1) * (2 * KY - 1) * (2 * KX - 1)
        dk = tl.zeros((TY * TX, BD), tl.float32)
        dv = tl.zeros((TY * TX, BE), tl.float32)
        for j0 in range(0, planes * rows * width, BK):
            qz, qy, qx, real = block_ranks(j0 + tl.arange(0, BK), low_z, low_y, low_x, planes, rows, width, KZ)
            pz, py, px = gz + DZ * qz, gy + DY * qy, gx + DX * qx
            q = load_rows(q_ptr, pz * q_z + py * q_y + px * q_x, d, real, D, BD)
            do = load_rows(do_ptr, pz * do_z + py * do_y + px * do_x, e, real, E, BE)
            at_row = (((b * H + h) * Z + pz) * Y + py) * X + px
            lse = tl.load(lse_ptr + at_row, mask=real, other=0.0)
            delta = tl.load(delta_ptr + at_row, mask=real, other=0.0)
            start_y, stop_y = window(qy, ny, KY, SY, CY)
            start_x, stop_x = window(qx, nx, KX, SX, CX)
            logits = matmul(k, tl.trans(q), PRECISION) * scale  # [keys, queries]
            seen = (ky[:, None] >= start_y[None, :]) & (ky[:, None] < stop_y[None, :]) & real[None, :]
            seen = seen & (kx[:, None] >= start_x[None, :]) & (kx[:, None] < stop_x[None, :]) & live[:, None]
            if KZ > 1:
                start_z, stop_z = window(qz, nz, KZ, SZ, CZ)
                seen = seen & ((kz >= start_z) & (kz < stop_z))[None, :]
            if BIAS:
                off_y, off_x = ky[:, None] - qy[None, :], kx[:, None] - qx[None, :]
                at = bias_index((kz - qz)[None, :], off_y, off_x, KZ, KY, KX)
                logits += tl.load(bias_ptr + at, mask=seen, other=0.0).to(tl.float32)
            p = tl.where(seen, tl.exp2(logits * LOG2E - lse[None, :]), 0.0)
            dv += matmul(p, do, PRECISION)
            ds = p * (matmul(v, tl.trans(do), PRECISION) - delta[None, :])
            dk += matmul(ds, q, PRECISION)
        store_rows(dk_ptr + b * dk_b + h * dk_h, dk * scale, sz * dk_z + sy * dk_y + sx * dk_x, d, live, D, BD)
        store_rows(dv_ptr + b * dv_b + h * dv_h, dv, sz * dv_z + sy * dv_y + sx * dv_x, e, live, E, BE)
