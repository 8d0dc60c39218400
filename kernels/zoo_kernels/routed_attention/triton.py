"""Routed attention as Triton kernels: keys and values read through the region index, never gathered to memory.

Keys of the routed regions are numbered through, j = slot * Nk + token, so that a tile is full whatever the region size.
The backward of k and v walks, for each key region, the sorted list of the query regions that chose it: every gradient
element is written once, by one program, without atomics. All sums are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo_kernels import tuning
from zoo_kernels.testing import BuildCase
from zoo_kernels.tiles import LOG2E, block, cast, device_of, dot, unit_stride

#: Largest head width: a tile of keys and one of values stay on chip.
MAX_HEAD_DIM = 128


def can_run(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, *, weights: Tensor | None = None, scale: float | None = None
) -> str | None:
    """None, or why the kernels cannot serve this call."""
    for name, t in (("k", k), ("v", v)):
        if t.shape[-1] > MAX_HEAD_DIM:
            return f"head_dim of {name} is {t.shape[-1]}, the kernels take at most {MAX_HEAD_DIM}"
    if any(t[:1].numel() * max(1, t.stride(-2)) >= 2**31 for t in (q, k, v)):
        return "one sample spans 2**31 elements or more, the kernels address a sample with 32 bits"
    return None


@triton.jit
def _forward_kernel(
    q, k, v, indices, weights, out, lse,
    q_b, q_r, q_n, q_h, k_b, k_r, k_n, k_h, v_b, v_r, v_n, v_h,
    R, heads, scale,
    TOPK: tl.constexpr, NQ: tl.constexpr, NK: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SOFT: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one region and head: online softmax over the routed keys. scale includes log2(e)."""
    TILES: tl.constexpr = (NQ + BLOCK_M - 1) // BLOCK_M
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads  # neighbours read neighbouring heads of the same rows
    tile, region = rest % TILES, rest // TILES
    b, r = (region // R).to(tl.int64), region % R
    rows, dk, dv = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_DK), tl.arange(0, BLOCK_DV)
    q_ptr = q + b * q_b + r * q_r + head * q_h + rows[:, None] * q_n + dk[None, :]
    q_MD = tl.load(q_ptr, mask=(rows < NQ)[:, None] & (dk < DK)[None, :], other=0.0)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for start in range(0, TOPK * NK, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        valid = j < TOPK * NK
        slot = j // NK
        source = tl.load(indices + region * TOPK + slot, mask=valid, other=0).to(tl.int32)
        k_row = source * k_r + (j - slot * NK) * k_n
        v_row = source * v_r + (j - slot * NK) * v_n
        k_ND = tl.load(
            k + b * k_b + head * k_h + k_row[:, None] + dk[None, :],
            mask=valid[:, None] & (dk < DK)[None, :],
            other=0.0,
        )
        v_ND = tl.load(
            v + b * v_b + head * v_h + v_row[:, None] + dv[None, :],
            mask=valid[:, None] & (dv < DV)[None, :],
            other=0.0,
        )
        s = dot(q_MD, tl.trans(k_ND)) * scale
        if SOFT:
            w = tl.load(weights + region * TOPK + slot, mask=valid, other=0.0)
            s = s * w[None, :]
        s = tl.where(valid[None, :], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        keep = tl.exp2(top - new_top)
        p = tl.exp2(s - new_top[:, None])
        total = total * keep + tl.sum(p, 1)
        if SOFT:
            p = p * w[None, :]
        acc = acc * keep[:, None] + dot(cast(p, v_ND.dtype), v_ND)
        top = new_top
    row = (region.to(tl.int64) * NQ + rows) * heads + head
    mask = (rows < NQ)[:, None] & (dv < DV)[None, :]
    tl.store(out + row[:, None] * DV + dv[None, :], cast(acc / total[:, None], out.dtype.element_ty), mask=mask)
    tl.store(lse + row, top + tl.log2(total), mask=rows < NQ)


@triton.jit
def _grad_q_kernel(
    q, k, v, indices, weights, out, grad, lse, delta, dq, dw,
    q_b, q_r, q_n, q_h, k_b, k_r, k_n, k_h, v_b, v_r, v_n, v_h,
    R, heads, scale,
    TOPK: tl.constexpr, NQ: tl.constexpr, NK: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SOFT: tl.constexpr,
):  # fmt: skip
    """dq of one tile, delta = sum(grad * out) for the other kernel, and each routed key's share of the weights' dw."""
    TILES: tl.constexpr = (NQ + BLOCK_M - 1) // BLOCK_M
    LOG2: tl.constexpr = 1.4426950408889634
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads
    tile, region = rest % TILES, rest // TILES
    b, r = (region // R).to(tl.int64), region % R
    rows, dk, dv = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_DK), tl.arange(0, BLOCK_DV)
    q_ptr = q + b * q_b + r * q_r + head * q_h + rows[:, None] * q_n + dk[None, :]
    q_MD = tl.load(q_ptr, mask=(rows < NQ)[:, None] & (dk < DK)[None, :], other=0.0)
    row = (region.to(tl.int64) * NQ + rows) * heads + head
    mask = (rows < NQ)[:, None] & (dv < DV)[None, :]
    o_MD = tl.load(out + row[:, None] * DV + dv[None, :], mask=mask, other=0.0)
    g_MD = tl.load(grad + row[:, None] * DV + dv[None, :], mask=mask, other=0.0)
    norm = tl.load(lse + row, mask=rows < NQ, other=0.0)
    share = tl.sum(o_MD.to(tl.float32) * g_MD.to(tl.float32), 1)
    tl.store(delta + row, share, mask=rows < NQ)
    acc = tl.zeros([BLOCK_M, BLOCK_DK], tl.float32)
    for start in range(0, TOPK * NK, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        valid = j < TOPK * NK
        slot = j // NK
        source = tl.load(indices + region * TOPK + slot, mask=valid, other=0).to(tl.int32)
        k_row = source * k_r + (j - slot * NK) * k_n
        v_row = source * v_r + (j - slot * NK) * v_n
        k_ND = tl.load(
            k + b * k_b + head * k_h + k_row[:, None] + dk[None, :],
            mask=valid[:, None] & (dk < DK)[None, :],
            other=0.0,
        )
        v_ND = tl.load(
            v + b * v_b + head * v_h + v_row[:, None] + dv[None, :],
            mask=valid[:, None] & (dv < DV)[None, :],
            other=0.0,
        )
        s = dot(q_MD, tl.trans(k_ND)) * (scale * LOG2)
        dp = dot(g_MD, tl.trans(v_ND))
        if SOFT:
            w = tl.load(weights + region * TOPK + slot, mask=valid, other=0.0)
            p = tl.where(valid[None, :], tl.exp2(s * w[None, :] - norm[:, None]), 0.0)
            ds = p * (dp * w[None, :] - share[:, None])
            dw_N = tl.sum(ds * s * (1.0 / LOG2) + p * dp, 0)
            dw_row = (region.to(tl.int64) * heads + head) * TILES + tile
            tl.store(dw + dw_row * (TOPK * NK) + j, dw_N, mask=valid)
            ds = ds * w[None, :]
        else:
            p = tl.where(valid[None, :], tl.exp2(s - norm[:, None]), 0.0)
            ds = p * (dp - share[:, None])
        acc += dot(cast(ds, k_ND.dtype), k_ND)
    mask = (rows < NQ)[:, None] & (dk < DK)[None, :]
    tl.store(dq + row[:, None] * DK + dk[None, :], cast(acc * scale, dq.dtype.element_ty), mask=mask)


@triton.jit
def _grad_kv_kernel(
    q, k, v, weights, order, first, grad, lse, delta, dk_out, dv_out,
    q_b, q_r, q_n, q_h, k_b, k_r, k_n, k_h, v_b, v_r, v_n, v_h,
    R, S, heads, scale,
    TOPK: tl.constexpr, NQ: tl.constexpr, NK: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SOFT: tl.constexpr,
):  # fmt: skip
    """dk, dv of one tile of keys of one region and head, over the queries of all regions that were routed to it."""
    TILES: tl.constexpr = (NK + BLOCK_N - 1) // BLOCK_N
    LOG2: tl.constexpr = 1.4426950408889634
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads
    tile, region = rest % TILES, rest // TILES  # region counts the key regions of all samples
    b, r = (region // S).to(tl.int64), region % S
    keys, dk, dv = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_DK), tl.arange(0, BLOCK_DV)
    k_mask = (keys < NK)[:, None] & (dk < DK)[None, :]
    v_mask = (keys < NK)[:, None] & (dv < DV)[None, :]
    k_ND = tl.load(k + b * k_b + r * k_r + head * k_h + keys[:, None] * k_n + dk[None, :], mask=k_mask, other=0.0)
    v_ND = tl.load(v + b * v_b + r * v_r + head * v_h + keys[:, None] * v_n + dv[None, :], mask=v_mask, other=0.0)
    begin = tl.load(first + region)
    count = (tl.load(first + region + 1) - begin) * NQ  # queries that see this region
    dk_acc = tl.zeros([BLOCK_N, BLOCK_DK], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    for start in range(0, count, BLOCK_M):
        j = start + tl.arange(0, BLOCK_M)
        valid = j < count
        place = j // NQ
        token = j - place * NQ
        entry = tl.load(order + begin + place, mask=valid, other=0)  # (b * R + query region) * TOPK + slot
        source = entry // TOPK
        local = (source - (region // S) * R) * q_r + token * q_n
        q_MD = tl.load(
            q + b * q_b + head * q_h + local[:, None] + dk[None, :],
            mask=valid[:, None] & (dk < DK)[None, :],
            other=0.0,
        )
        row = (source.to(tl.int64) * NQ + token) * heads + head
        g_MD = tl.load(grad + row[:, None] * DV + dv[None, :], mask=valid[:, None] & (dv < DV)[None, :], other=0.0)
        norm = tl.load(lse + row, mask=valid, other=0.0)
        share = tl.load(delta + row, mask=valid, other=0.0)
        s = dot(k_ND, tl.trans(q_MD)) * (scale * LOG2)  # [BLOCK_N, BLOCK_M]
        dp = dot(v_ND, tl.trans(g_MD))
        if SOFT:
            w = tl.load(weights + entry, mask=valid, other=0.0)
            p = tl.where(valid[None, :], tl.exp2(s * w[None, :] - norm[None, :]), 0.0)
            ds = p * (dp * w[None, :] - share[None, :]) * w[None, :]
            p = p * w[None, :]
        else:
            p = tl.where(valid[None, :], tl.exp2(s - norm[None, :]), 0.0)
            ds = p * (dp - share[None, :])
        dv_acc += dot(cast(p, g_MD.dtype), g_MD)
        dk_acc += dot(cast(ds, q_MD.dtype), q_MD)
    row = (region.to(tl.int64) * NK + keys) * heads + head
    tl.store(dk_out + row[:, None] * DK + dk[None, :], cast(dk_acc * scale, dk_out.dtype.element_ty), mask=k_mask)
    tl.store(dv_out + row[:, None] * DV + dv[None, :], cast(dv_acc, dv_out.dtype.element_ty), mask=v_mask)


def _tiles(kernel: str, rows: int, columns: int, like: Tensor, d: int, *, turned: bool = False) -> dict[str, int]:
    """Tile sizes and warps for tiles of ``rows`` kept and ``columns`` walked over; ``turned``: rows are the keys."""
    most = 64 if d <= 64 else 32
    kept, walked = block(rows, 16, most), block(columns, 16, most)
    default = {
        "BLOCK_M": walked if turned else kept,
        "BLOCK_N": kept if turned else walked,
        "num_warps": 4 if kept >= 64 else (2 if kept == 32 else 1),  # 64 rows and 4 warps give wgmma
        "num_stages": 2,
    }
    exact = {"dim": block(d, 16, MAX_HEAD_DIM), "rows": kept, "bytes": like.element_size()}
    return tuning.config(kernel, like.device, default, exact=exact, near={"columns": columns})


def _shape_arguments(q: Tensor, k: Tensor, v: Tensor, indices: Tensor) -> dict[str, int]:
    dk, dv = k.shape[4], v.shape[4]
    return {
        "TOPK": indices.shape[2],
        "NQ": q.shape[2],
        "NK": k.shape[2],
        "DK": dk,
        "DV": dv,
        "BLOCK_DK": block(dk, 16, MAX_HEAD_DIM),
        "BLOCK_DV": block(dv, 16, MAX_HEAD_DIM),
    }


@torch.library.custom_op("zoo_kernels::routed_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, weights: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """out [B, R, Nq, h, dv] and the base-2 log-sum-exp [B, R, Nq, h] of the scaled logits."""
    (B, R, Nq, h, _), dv = q.shape, v.shape[4]
    out = torch.empty(B, R, Nq, h, dv, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, R, Nq, h, dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    q, k, v, indices = unit_stride(q), unit_stride(k), unit_stride(v), indices.contiguous()
    tiles = _tiles("routed_forward", Nq, indices.shape[2] * k.shape[2], q, max(k.shape[4], dv))
    grid = (B * R * triton.cdiv(Nq, tiles["BLOCK_M"]) * h,)
    with device_of(q):
        _forward_kernel[grid](
            q, k, v, indices, weights, out, lse, *q.stride()[:4], *k.stride()[:4], *v.stride()[:4], R, h, scale * LOG2E,
            SOFT=weights is not None, **_shape_arguments(q, k, v, indices), **tiles,
        )  # fmt: skip
    return out, lse


@_forward.register_fake
def _(q, k, v, indices, weights, scale):
    return q.new_empty(*q.shape[:4], v.shape[4]), q.new_empty(q.shape[:4], dtype=torch.float32)


def inverse_lists(indices: Tensor, regions: int) -> tuple[Tensor, Tensor]:
    """For each of the B * ``regions`` key regions the entries of ``indices`` [B, R, topk] that name it.

    Returns ``order`` [B*R*topk] int32, flat positions in ``indices`` sorted by the key region they name (stable), and
    ``first`` [B*regions + 1] int32: region s of sample b has ``order[first[b*regions+s] : first[b*regions+s+1]]``.
    """
    B = indices.shape[0]
    target = indices + torch.arange(B, device=indices.device)[:, None, None] * regions
    target, order = target.flatten().sort(stable=True)
    first = torch.searchsorted(target, torch.arange(B * regions + 1, device=indices.device, dtype=target.dtype))
    return order.int(), first.int()


@torch.library.custom_op("zoo_kernels::routed_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, indices: Tensor, weights: Tensor | None, out: Tensor, lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv contiguous in the shapes of q, k, v, and dw float32 [B, R, topk] (empty without weights)."""
    (B, R, Nq, h, _), (S, Nk, topk) = q.shape, (*k.shape[1:3], indices.shape[2])
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    delta = torch.empty_like(lse)
    if out.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_(), lse.new_zeros(indices.shape if weights is not None else 0)
    q, k, v, grad, indices = unit_stride(q), unit_stride(k), unit_stride(v), grad.contiguous(), indices.contiguous()
    strides = (*q.stride()[:4], *k.stride()[:4], *v.stride()[:4])
    shapes, soft = _shape_arguments(q, k, v, indices), weights is not None
    width = max(k.shape[4], v.shape[4])
    tiles = _tiles("routed_grad_q", Nq, topk * Nk, q, width)
    blocks = triton.cdiv(Nq, tiles["BLOCK_M"])
    dw = torch.empty((B, R, h, blocks, topk, Nk) if soft else 0, dtype=torch.float32, device=q.device)
    with device_of(q):
        _grad_q_kernel[(B * R * blocks * h,)](
            q, k, v, indices, weights, out, grad, lse, delta, dq, dw, *strides, R, h, scale, SOFT=soft, **shapes,
            **tiles,
        )  # fmt: skip
        tiles = _tiles("routed_grad_kv", Nk, R * topk * Nq // S, q, width, turned=True)
        order, first = inverse_lists(indices, S)
        _grad_kv_kernel[(B * S * triton.cdiv(Nk, tiles["BLOCK_N"]) * h,)](
            q, k, v, weights, order, first, grad, lse, delta, dk, dv, *strides, R, S, h, scale, SOFT=soft, **shapes,
            **tiles,
        )  # fmt: skip
    return dq, dk, dv, dw.sum((2, 3, 5)) if soft else dw


@_backward.register_fake
def _(grad, q, k, v, indices, weights, out, lse, scale):
    dw = lse.new_empty(indices.shape if weights is not None else (0,))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dw


def _setup_context(ctx, inputs, output):
    q, k, v, indices, weights, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, indices, weights, *output)
    ctx.set_materialize_grads(True)


def _autograd(ctx, grad, _):
    q, k, v, indices, weights, out, lse = ctx.saved_tensors
    dq, dk, dv, dw = _backward(grad, q, k, v, indices, weights, out, lse, ctx.scale)
    return dq, dk, dv, None, dw if weights is not None else None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def forward(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, *, weights: Tensor | None = None, scale: float) -> Tensor:
    """See :func:`zoo_kernels.routed_attention.routed_attention`; [B, R, Nq, h, dv]."""
    return _forward(q, k, v, indices, None if weights is None else weights.float().contiguous(), scale)[0]


def build_cases() -> dict[str, BuildCase]:
    """BiFormer's first and third stage at 224 px, and one with weights; q, k, v are views of packed qkv."""
    from zoo_kernels.routed_attention import routed_attention

    def case(tokens: int, channels: int, topk: int, *, soft: bool = False) -> BuildCase:
        heads = channels // 32
        qkv = torch.zeros(1, 49, tokens, 3, heads, 32, dtype=torch.bfloat16)
        indices = torch.zeros(1, 49, topk, dtype=torch.int64)
        weights = torch.zeros(1, 49, topk, dtype=torch.bfloat16) if soft else None
        return BuildCase(routed_attention, (*qkv.unbind(3), indices), {"weights": weights})

    return {
        "stage1": case(64, 64, 1),
        "stage3": case(4, 256, 16),
        "soft": case(64, 128, 4, soft=True),
    }
