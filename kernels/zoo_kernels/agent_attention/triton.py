"""Agent attention as two fused Triton passes; all agents stay on chip, the keys and queries stream past them.

Pass one (collect) reads k and v once: agents <- keys, an online softmax, split over the keys where batch and heads do
not fill the card, with a second kernel that merges the parts. Pass two (spread) reads q once: queries <- agents.
Backward: spread's gradient first (it makes the gradient of the collected values), then collect's; sums over tokens are
written as one part a program and added in a second stage, so that nothing is atomic. All sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from zoo_kernels import tuning
from zoo_kernels.dispatch import multiprocessors
from zoo_kernels.testing import BuildCase
from zoo_kernels.tiles import block, cast, device_of, dot, dot_wide, unit_stride

#: Largest padded agents x head_dim: the accumulators of both gradients by agent stay in registers.
MAX_ON_CHIP = 128 * 64


@triton.jit
def _rows(base, rows, limit, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows ``rows`` of a [.., D] matrix, zero beyond ``limit`` and D: [rows, BLOCK_D]."""
    d = tl.arange(0, BLOCK_D)
    return tl.load(
        base + rows[:, None] * stride + d[None, :], mask=(rows < limit)[:, None] & (d < D)[None, :], other=0.0
    )


@triton.jit
def _store_rows(base, value, rows, limit, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    mask = (rows < limit)[:, None] & (d < D)[None, :]
    tl.store(base + rows[:, None] * stride + d[None, :], cast(value.to(tl.float32), base.dtype.element_ty), mask=mask)


@triton.jit
def _bias_tile(base, rows, row_limit, row_stride, columns, column_limit, column_stride):
    """A tile of a bias as float32; a broadcast dimension has stride 0, and rows may be wider than what is used."""
    mask = (rows < row_limit)[:, None] & (columns < column_limit)[None, :]
    offset = rows[:, None] * row_stride + columns[None, :] * column_stride
    return tl.load(base + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _collect_kernel(
    k, v, agent, bias, part, top_out, total_out,
    k_b, k_h, k_n, v_b, v_h, v_n, a_b, a_h, a_n, s_b, s_h, s_r, s_c, s_w,
    M, heads, agents, per_split, splits, scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr, FINAL: tl.constexpr,
):  # fmt: skip
    """One split's keys of one sample and head. FINAL: the only split, so the result is normalised here.

    Writes part [B*h, splits, n, DV], the running maximum (FINAL: base-2 log-sum-exp) and sum [B*h, splits, n].
    """
    LOG2: tl.constexpr = 1.4426950408889634
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads
    split, b = rest % splits, (rest // splits).to(tl.int64)
    rows = tl.arange(0, BLOCK_A)
    a_AD = _rows(agent + b * a_b + head * a_h, rows, agents, a_n, D, BLOCK_D)
    top = tl.full([BLOCK_A], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_A], tl.float32)
    acc = tl.zeros([BLOCK_A, BLOCK_DV], tl.float32)
    begin = split * per_split
    end = tl.minimum(begin + per_split, M)
    for start in range(begin, end, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        k_ND = _rows(k + b * k_b + head * k_h, j, end, k_n, D, BLOCK_D)
        v_ND = _rows(v + b * v_b + head * v_h, j, end, v_n, DV, BLOCK_DV)
        s = dot(a_AD, tl.trans(k_ND)) * (scale * LOG2)
        if HAS_BIAS:
            s += LOG2 * _bias_tile(bias + b * s_b + head * s_h, rows, agents, s_r, j, s_w, s_c)
        s = tl.where((j < end)[None, :], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)  # a bias of -inf may mask all keys so far
        keep = tl.exp2(top - pivot)
        p = tl.exp2(s - pivot[:, None])
        total = total * keep + tl.sum(p, 1)
        acc = acc * keep[:, None] + dot(cast(p, v_ND.dtype), v_ND)
        top = new_top
    if FINAL:
        acc = acc / total[:, None]
        top = top + tl.log2(total)
    place = ((b * heads + head) * splits + split) * agents
    _store_rows(part + place * DV, acc, rows, agents, DV, DV, BLOCK_DV)
    tl.store(top_out + place + rows, top, mask=rows < agents)
    if not FINAL:
        tl.store(total_out + place + rows, total, mask=rows < agents)


@triton.jit
def _merge_kernel(
    part, top_in, total_in, agent_v, lse, agents, splits, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_A: tl.constexpr,
):  # fmt: skip
    """Second stage of collect: the splits of one sample and head, in order, into agent_v [n, DV] and its lse."""
    group = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, BLOCK_A)
    top = tl.full([BLOCK_A], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_A], tl.float32)
    acc = tl.zeros([BLOCK_A, BLOCK_DV], tl.float32)
    for split in range(splits):
        place = (group * splits + split) * agents
        own_top = tl.load(top_in + place + rows, mask=rows < agents, other=0.0)
        own_total = tl.load(total_in + place + rows, mask=rows < agents, other=1.0)
        own = _rows(part + place * DV, rows, agents, DV, DV, BLOCK_DV)
        new_top = tl.maximum(top, own_top)
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        keep, add = tl.exp2(top - pivot), tl.exp2(own_top - pivot)
        total = total * keep + own_total * add
        acc = acc * keep[:, None] + own * add[:, None]
        top = new_top
    _store_rows(agent_v + group * agents * DV, acc / total[:, None], rows, agents, DV, DV, BLOCK_DV)
    tl.store(lse + group * agents + rows, top + tl.log2(total), mask=rows < agents)


@triton.jit
def _spread_kernel(
    q, agent, agent_v, bias, out,
    q_b, q_h, q_n, a_b, a_h, a_n, s_b, s_h, s_r, s_c, s_w, o_b, o_h, o_n,
    N, heads, agents, groups, tiles_each, scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """``tiles_each`` tiles of queries of one sample and head; agents and their values are loaded once."""
    LOG2: tl.constexpr = 1.4426950408889634
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads
    group, b = rest % groups, (rest // groups).to(tl.int64)
    rows = tl.arange(0, BLOCK_A)
    a_AD = _rows(agent + b * a_b + head * a_h, rows, agents, a_n, D, BLOCK_D)
    v_AD = _rows(agent_v + (b * heads + head) * agents * DV, rows, agents, DV, DV, BLOCK_DV)
    v_AD = cast(v_AD, a_AD.dtype)
    for tile in range(tiles_each):
        i = (group * tiles_each + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        q_ND = _rows(q + b * q_b + head * q_h, i, N, q_n, D, BLOCK_D)
        s = dot(q_ND, tl.trans(a_AD)) * (scale * LOG2)
        if HAS_BIAS:
            s += LOG2 * _bias_tile(bias + b * s_b + head * s_h, i, N, s_r, rows, s_w, s_c)
        s = tl.where((rows < agents)[None, :], s, float("-inf"))
        p = tl.exp2(s - tl.max(s, 1)[:, None])
        o = dot(cast(p, v_AD.dtype), v_AD) / tl.sum(p, 1)[:, None]
        _store_rows(out + b * o_b + head * o_h, o, i, N, o_n, DV, BLOCK_DV)


@triton.jit
def _grad_spread_kernel(
    q, agent, agent_v, bias, grad, dq, da_part, dav_part, dbias,
    q_b, q_h, q_n, a_b, a_h, a_n, s_b, s_h, s_r, s_c, s_w, g_b, g_h, g_n, dq_b, dq_h, dq_n,
    B, N, heads, agents, groups, parts, steps, scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_A: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr, BIAS_GRAD: tl.constexpr,
):  # fmt: skip
    """Gradient of spread: dq, parts of d(agent) and d(agent_v), d(bias).

    Without a bias gradient a program walks over ``steps`` tiles of one sample; with one it walks over ``steps`` samples
    of one tile, so that the gradient of a bias that the batch shares is summed in registers.
    """
    LOG2: tl.constexpr = 1.4426950408889634
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads
    group, outer = rest % groups, rest // groups
    rows, columns = tl.arange(0, BLOCK_A), tl.arange(0, BLOCK_N)
    da = tl.zeros([BLOCK_A, BLOCK_D], tl.float32)
    dav = tl.zeros([BLOCK_A, BLOCK_DV], tl.float32)
    db = tl.zeros([BLOCK_N, BLOCK_A], tl.float32)
    for step in range(steps):
        if BIAS_GRAD:
            b, tile = (outer * steps + step).to(tl.int64), group
            da = tl.zeros([BLOCK_A, BLOCK_D], tl.float32)
            dav = tl.zeros([BLOCK_A, BLOCK_DV], tl.float32)
        else:
            b, tile = outer.to(tl.int64), group * steps + step
        # Past the last sample every limit is 0: loads give zeros, stores nothing.
        n, N_live = tl.where(b < B, agents, 0), tl.where(b < B, N, 0)
        i = tile * BLOCK_N + columns
        a_AD = _rows(agent + b * a_b + head * a_h, rows, n, a_n, D, BLOCK_D)
        v_AD = _rows(agent_v + (b * heads + head) * agents * DV, rows, n, DV, DV, BLOCK_DV)
        q_ND = _rows(q + b * q_b + head * q_h, i, N_live, q_n, D, BLOCK_D)
        g_ND = _rows(grad + b * g_b + head * g_h, i, N_live, g_n, DV, BLOCK_DV)
        s = dot(q_ND, tl.trans(a_AD)) * (scale * LOG2)
        if HAS_BIAS:
            s += LOG2 * _bias_tile(bias + b * s_b + head * s_h, i, N_live, s_r, rows, s_w, s_c)
        s = tl.where((rows < agents)[None, :], s, float("-inf"))
        p = tl.exp2(s - tl.max(s, 1)[:, None])
        p = p / tl.sum(p, 1)[:, None]
        dp = dot_wide(g_ND, tl.trans(v_AD))
        ds = p * (dp - tl.sum(p * dp, 1)[:, None])
        ds_half = cast(ds, q_ND.dtype)
        _store_rows(dq + b * dq_b + head * dq_h, dot(ds_half, a_AD) * scale, i, N_live, dq_n, D, BLOCK_D)
        da += dot(tl.trans(ds_half), q_ND)
        dav += dot(tl.trans(cast(p, g_ND.dtype)), g_ND)
        if BIAS_GRAD:
            db += ds
            place = ((b * heads + head) * parts + tile) * agents
            _store_rows(da_part + place * D, da * scale, rows, n, D, D, BLOCK_D)
            _store_rows(dav_part + place * DV, dav, rows, n, DV, DV, BLOCK_DV)
    if BIAS_GRAD:
        place = (outer * heads + head).to(tl.int64) * N * agents
        _store_rows(dbias + place, db, group * BLOCK_N + columns, N, agents, agents, BLOCK_A)
    else:
        place = ((outer * heads + head).to(tl.int64) * parts + group) * agents
        _store_rows(da_part + place * D, da * scale, rows, agents, D, D, BLOCK_D)
        _store_rows(dav_part + place * DV, dav, rows, agents, DV, DV, BLOCK_DV)


@triton.jit
def _grad_collect_kernel(
    k, v, agent, bias, agent_v, dav, lse, dk, dv, da_part, dbias,
    k_b, k_h, k_n, v_b, v_h, v_n, a_b, a_h, a_n, s_b, s_h, s_r, s_c, s_w, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    B, M, heads, agents, groups, parts, steps, scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_A: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr, BIAS_GRAD: tl.constexpr,
):  # fmt: skip
    """Gradient of collect: dk, dv, parts of d(agent), d(bias); walks as :func:`_grad_spread_kernel` does."""
    LOG2: tl.constexpr = 1.4426950408889634
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads
    group, outer = rest % groups, rest // groups
    rows, columns = tl.arange(0, BLOCK_A), tl.arange(0, BLOCK_N)
    da = tl.zeros([BLOCK_A, BLOCK_D], tl.float32)
    db = tl.zeros([BLOCK_A, BLOCK_N], tl.float32)
    for step in range(steps):
        if BIAS_GRAD:
            b, tile = (outer * steps + step).to(tl.int64), group
            da = tl.zeros([BLOCK_A, BLOCK_D], tl.float32)
        else:
            b, tile = outer.to(tl.int64), group * steps + step
        n, M_live = tl.where(b < B, agents, 0), tl.where(b < B, M, 0)
        j = tile * BLOCK_N + columns
        place = (b * heads + head) * agents
        a_AD = _rows(agent + b * a_b + head * a_h, rows, n, a_n, D, BLOCK_D)
        o_AD = _rows(agent_v + place * DV, rows, n, DV, DV, BLOCK_DV)
        g_AD = _rows(dav + place * DV, rows, n, DV, DV, BLOCK_DV)
        norm = tl.load(lse + place + rows, mask=rows < n, other=0.0)
        share = tl.sum(o_AD * g_AD, 1)
        g_half = cast(g_AD, a_AD.dtype)
        k_ND = _rows(k + b * k_b + head * k_h, j, M_live, k_n, D, BLOCK_D)
        v_ND = _rows(v + b * v_b + head * v_h, j, M_live, v_n, DV, BLOCK_DV)
        s = dot(a_AD, tl.trans(k_ND)) * (scale * LOG2)
        if HAS_BIAS:
            s += LOG2 * _bias_tile(bias + b * s_b + head * s_h, rows, n, s_r, j, s_w, s_c)
        p = tl.where((rows < n)[:, None] & (j < M_live)[None, :], tl.exp2(s - norm[:, None]), 0.0)
        ds = p * (dot(g_half, tl.trans(v_ND)) - share[:, None])
        ds_half = cast(ds, k_ND.dtype)
        _store_rows(
            dv + b * dv_b + head * dv_h, dot(tl.trans(cast(p, g_half.dtype)), g_half), j, M_live, dv_n, DV, BLOCK_DV
        )
        _store_rows(dk + b * dk_b + head * dk_h, dot(tl.trans(ds_half), a_AD) * scale, j, M_live, dk_n, D, BLOCK_D)
        da += dot(ds_half, k_ND)
        if BIAS_GRAD:
            db += ds
            place = ((b * heads + head) * parts + tile) * agents
            _store_rows(da_part + place * D, da * scale, rows, n, D, D, BLOCK_D)
    if BIAS_GRAD:
        j = group * BLOCK_N + columns
        place = (outer * heads + head).to(tl.int64) * agents * M
        mask = (rows < agents)[:, None] & (j < M)[None, :]
        tl.store(dbias + place + rows[:, None] * M + j[None, :], db, mask=mask)
    else:
        place = ((outer * heads + head).to(tl.int64) * parts + group) * agents
        _store_rows(da_part + place * D, da * scale, rows, agents, D, D, BLOCK_D)


def can_run(
    q: Tensor, k: Tensor, v: Tensor, agent: Tensor, *, agent_bias: Tensor | None = None,
    query_bias: Tensor | None = None, scale: float | None = None,
) -> str | None:  # fmt: skip
    """None, or why the kernels cannot serve this call."""
    n, width = block(agent.shape[2]), block(max(q.shape[3], v.shape[3]))
    if width > 128:
        return f"head_dim is {max(q.shape[3], v.shape[3])}, the kernels take at most 128"
    if n * width > MAX_ON_CHIP:
        return (
            f"{agent.shape[2]} agents of head_dim {q.shape[3]} pad to {n} x {width} numbers, the kernels keep at most "
            f"{MAX_ON_CHIP} on chip"
        )
    if any(t[:1].numel() * max(1, t.stride(2)) >= 2**31 for t in (q, k, v)):
        return "one sample spans 2**31 elements or more, the kernels address a sample with 32 bits"
    return None


def _config(kernel: str, q: Tensor, v: Tensor, agents: int, tokens: int) -> dict[str, int]:
    """Constant arguments, tile sizes and warps of a kernel that walks over ``tokens``."""
    d, dv = q.shape[3], v.shape[3]
    width = block(max(d, dv))
    default = {"BLOCK_N": 64, "num_warps": 8 if block(agents) * width > 64 * 64 else 4, "num_stages": 2}
    exact = {"dim": width, "agents": block(agents), "bytes": q.element_size()}
    near = {"tokens": tokens, "heads": q.shape[0] * q.shape[1]}
    own = tuning.config(kernel, q.device, default, exact=exact, near=near)
    return {"D": d, "DV": dv, "BLOCK_D": block(d), "BLOCK_DV": block(dv), "BLOCK_A": block(agents), **own}


def _bias(bias: Tensor | None, columns: int) -> tuple[Tensor | None, tuple[int, ...]]:
    """A bias [.., .., .., columns] with aligned rows; its strides, 0 where it broadcasts, and its padded width."""
    width = -(-columns // 16) * 16
    if bias is None:
        return None, (0, 0, 0, 0, width)
    bias = bias.detach()[(None,) * (4 - bias.dim())]
    if bias.shape[3] > 1 and (bias.stride(3) != 1 or bias.shape[3] < width):
        # Rows of whole 32 bytes, so that they are read 16 bytes at a time; what is added is never used.
        bias = F.pad(bias, (0, width - bias.shape[3])).contiguous()
    return bias, (*(0 if size == 1 else stride for size, stride in zip(bias.shape, bias.stride())), width)


def _head_last(*, B: int, h: int, N: int, d: int, like: Tensor) -> Tensor:
    """An empty [B, h, N, d] whose memory is [B, N, h, d], which is what the output projection reads."""
    return torch.empty(B, N, h, d, dtype=like.dtype, device=like.device).transpose(1, 2)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


@torch.library.custom_op("zoo_kernels::agent_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, agent: Tensor, agent_bias: Tensor | None, query_bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """out [B, h, N, dv], the collected agent values [B, h, n, dv] and their base-2 log-sum-exp [B, h, n] in float32."""
    (B, h, N, _), (M, dv), n = q.shape, v.shape[2:], agent.shape[2]
    out = _head_last(B=B, h=h, N=N, d=dv, like=q)
    agent_v = torch.empty(B, h, n, dv, dtype=torch.float32, device=q.device)
    lse = torch.empty(B, h, n, dtype=torch.float32, device=q.device)
    if B * h == 0:
        return out, agent_v, lse
    q, k, v, agent = map(unit_stride, (q, k, v, agent))
    (ab, ab_strides), (qb, qb_strides) = _bias(agent_bias, M), _bias(query_bias, n)
    config = _config("agent_collect", q, v, n, M)
    size, wanted = config["BLOCK_N"], 4 * multiprocessors(q.device)
    # Keys are split only as far as needed to give every multiprocessor work.
    per_split = size * _ceil(_ceil(M, size), min(_ceil(M, size), _ceil(wanted, B * h)))
    splits = _ceil(M, per_split)
    part, top, total = agent_v, lse, lse
    if splits > 1:
        part = torch.empty(B * h, splits, n, dv, dtype=torch.float32, device=q.device)
        top, total = torch.empty(2, B * h, splits, n, dtype=torch.float32, device=q.device)
    with device_of(q):
        _collect_kernel[(B * h * splits,)](
            k, v, agent, ab, part, top, total, *k.stride()[:3], *v.stride()[:3], *agent.stride()[:3], *ab_strides,
            M, h, n, per_split, splits, scale, HAS_BIAS=ab is not None, FINAL=splits == 1, **config,
        )  # fmt: skip
        if splits > 1:
            _merge_kernel[(B * h,)](
                part, top, total, agent_v, lse, n, splits, DV=dv, BLOCK_DV=config["BLOCK_DV"],
                BLOCK_A=config["BLOCK_A"], num_warps=4,
            )  # fmt: skip
        if N > 0:
            config = _config("agent_spread", q, v, n, N)
            tiles = _ceil(N, config["BLOCK_N"])
            each = max(1, min(8, tiles, B * h * tiles // wanted))
            groups = _ceil(tiles, each)
            _spread_kernel[(B * h * groups,)](
                q, agent, agent_v, qb, out, *q.stride()[:3], *agent.stride()[:3], *qb_strides, *out.stride()[:3],
                N, h, n, groups, each, scale, HAS_BIAS=qb is not None, **config,
            )  # fmt: skip
    return out, agent_v, lse


@_forward.register_fake
def _(q, k, v, agent, agent_bias, query_bias, scale):
    (B, h, N, _), n, dv = q.shape, agent.shape[2], v.shape[3]
    out = q.new_empty(B, N, h, dv).transpose(1, 2)
    return out, q.new_empty(B, h, n, dv, dtype=torch.float32), q.new_empty(B, h, n, dtype=torch.float32)


def _walk(tokens: int, size: int, B: int, h: int, wanted: int, bias: Tensor | None) -> tuple[int, int, int, int]:
    """How programs of a backward kernel divide the work: (groups, outer, parts, steps).

    ``bias`` is the one whose gradient is asked for, or None. Its programs stand for a tile each and walk over samples
    (one sample if each has its own bias); the others stand for a sample and walk over tiles.
    """
    tiles = _ceil(tokens, size)
    if bias is None:
        steps = max(1, min(8, tiles, B * h * tiles // wanted))
        return _ceil(tiles, steps), B, _ceil(tiles, steps), steps
    shared = bias.dim() < 4 or bias.shape[0] == 1
    steps = max(1, min(B, B * h * tiles // wanted)) if shared else 1
    return tiles, _ceil(B, steps), tiles, steps


@torch.library.custom_op("zoo_kernels::agent_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, agent: Tensor, agent_bias: Tensor | None, query_bias: Tensor | None,
    agent_v: Tensor, lse: Tensor, scale: float, need_agent_bias: bool, need_query_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, d(agent), d(agent_bias), d(query_bias); a bias gradient not asked for is empty."""
    (B, h, N, d), (M, dv_), n = q.shape, v.shape[2:], agent.shape[2]
    dq, dk = (_head_last(B=B, h=h, N=t.shape[2], d=d, like=q) for t in (q, k))
    dv = _head_last(B=B, h=h, N=M, d=dv_, like=q)
    made: dict[str, Any] = {"dtype": torch.float32, "device": q.device}
    if B * h * N == 0:
        da = torch.zeros(agent.shape, dtype=q.dtype, device=q.device)
        dab = q.new_empty(0) if agent_bias is None or not need_agent_bias else torch.zeros_like(agent_bias)
        dqb = q.new_empty(0) if query_bias is None or not need_query_bias else torch.zeros_like(query_bias)
        return dq.zero_(), dk.zero_(), dv.zero_(), da, dab, dqb
    q, k, v, agent, grad = map(unit_stride, (q, k, v, agent, grad))
    (ab, ab_strides), (qb, qb_strides) = _bias(agent_bias, M), _bias(query_bias, n)
    wanted = 4 * multiprocessors(q.device)
    with device_of(q):
        config = _config("agent_grad_spread", q, v, n, N)
        bias = query_bias if need_query_bias else None
        groups, outer, parts, steps = _walk(N, config["BLOCK_N"], B, h, wanted, bias)
        da_q, dav = torch.empty(B, h, parts, n, d, **made), torch.empty(B, h, parts, n, dv_, **made)
        dqb = torch.empty((outer, h, N, n) if need_query_bias else 0, **made)
        _grad_spread_kernel[(h * groups * outer,)](
            q, agent, agent_v, qb, grad, dq, da_q, dav, dqb, *q.stride()[:3], *agent.stride()[:3], *qb_strides,
            *grad.stride()[:3], *dq.stride()[:3], B, N, h, n, groups, parts, steps, scale, HAS_BIAS=qb is not None,
            BIAS_GRAD=need_query_bias, **config,
        )  # fmt: skip
        dav = dav.sum(2)
        config = _config("agent_grad_collect", q, v, n, M)
        bias = agent_bias if need_agent_bias else None
        groups, outer, parts, steps = _walk(M, config["BLOCK_N"], B, h, wanted, bias)
        da_k = torch.empty(B, h, parts, n, d, **made)
        dab = torch.empty((outer, h, n, M) if need_agent_bias else 0, **made)
        _grad_collect_kernel[(h * groups * outer,)](
            k, v, agent, ab, agent_v, dav, lse, dk, dv, da_k, dab, *k.stride()[:3], *v.stride()[:3],
            *agent.stride()[:3], *ab_strides, *dk.stride()[:3], *dv.stride()[:3], B, M, h, n, groups, parts, steps,
            scale, HAS_BIAS=ab is not None, BIAS_GRAD=need_agent_bias, **config,
        )  # fmt: skip
    da = (da_q.sum(2) + da_k.sum(2)).to(q.dtype)
    return dq, dk, dv, da, _bias_grad(dab, agent_bias, need_agent_bias), _bias_grad(dqb, query_bias, need_query_bias)


def _bias_grad(parts: Tensor, bias: Tensor | None, needed: bool) -> Tensor:
    """Sum parts [outer, h, rows, columns] to the shape of the bias."""
    if bias is None or not needed:
        return parts.new_empty(0)
    if bias.dim() < 4 or bias.shape[0] == 1:
        parts = parts.sum(0, keepdim=True)
    return parts.sum_to_size(bias.shape).to(bias.dtype).contiguous()


@_backward.register_fake
def _(grad, q, k, v, agent, agent_bias, query_bias, agent_v, lse, scale, need_agent_bias, need_query_bias):
    B, h = q.shape[:2]
    dq, dk, dv = (q.new_empty(B, t.shape[2], h, t.shape[3]).transpose(1, 2) for t in (q, k, v))
    biases = [
        b.new_empty(b.shape) if need else lse.new_empty(0)
        for b, need in ((agent_bias, need_agent_bias), (query_bias, need_query_bias))
    ]
    return dq, dk, dv, q.new_empty(agent.shape), *biases


def _setup_context(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _autograd(ctx, grad, *_):
    *inputs, agent_v, lse = ctx.saved_tensors
    need_agent_bias, need_query_bias = ctx.needs_input_grad[4:6]
    *grads, dab, dqb = _backward(grad, *inputs, agent_v, lse, ctx.scale, need_agent_bias, need_query_bias)
    return *grads, dab if need_agent_bias else None, dqb if need_query_bias else None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def forward(
    q: Tensor, k: Tensor, v: Tensor, agent: Tensor, *, agent_bias: Tensor | None = None,
    query_bias: Tensor | None = None, scale: float,
) -> Tensor:  # fmt: skip
    """See :func:`zoo_kernels.agent_attention.agent_attention`; [B, h, N, dv]."""
    return _forward(q, k, v, agent, agent_bias, query_bias, scale)[0]


def build_cases() -> dict[str, BuildCase]:
    """Agent-Swin's first and third stage at 224 px, and one without bias; q, k, v are views of packed qkv."""
    from zoo_kernels.agent_attention import agent_attention

    def case(batch: int, tokens: int, heads: int, agents: int, *, bias: bool = True) -> BuildCase:
        made: dict[str, Any] = {"dtype": torch.bfloat16}
        qkv = torch.zeros(batch, tokens, 3, heads, 32, **made).permute(2, 0, 3, 1, 4)
        agent = torch.zeros(batch, agents, heads, 32, **made).transpose(1, 2)
        biases = {"agent_bias": torch.zeros(1, heads, agents, tokens, **made),
                  "query_bias": torch.zeros(1, heads, tokens, agents, **made)}  # fmt: skip
        # The merge of split keys adds a few small matrices; it multiplies none.
        return BuildCase(agent_attention, (*qkv, agent), biases if bias else {}, no_tensor_cores=("_merge_kernel",))

    return {
        "stage1": case(2, 3136, 3, 9),
        "stage3": case(2, 196, 12, 49),
        "no-bias": case(2, 784, 6, 49, bias=False),
    }
