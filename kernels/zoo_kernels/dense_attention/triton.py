"""Dense attention on the GPU for the scores that PyTorch has no kernel for; the score matrix is never in memory.

Forward: a program keeps a block of queries and walks over the keys. Scores that are normalised over the queries first
get the log-sum-exp of each key by the same walk with the roles exchanged. Backward: one kernel walks over the queries
for a block of keys (dK, dV), one over the keys for a block of queries (dQ), one, where the bias needs a gradient, over
the images and heads that share a tile of it. Nothing is atomic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo_kernels import tuning
from zoo_kernels.testing import BuildCase
from zoo_kernels.tiles import LOG2E, block, cast, device_of, dot, unit_stride

MAX_HEAD_DIM = 128
CODES = {"relu": 0, "cog": 1, "reversed": 2}
RELU, COG, REVERSED = (tl.constexpr(CODES[name]) for name in ("relu", "cog", "reversed"))
TO_BASE_2 = tl.constexpr(LOG2E)


@triton.jit
def _rows(ptr, rows, limit, stride, D: tl.constexpr, BD: tl.constexpr):
    """Rows of a matrix [limit, D] as [rows, BD], zero outside."""
    d = tl.arange(0, BD)
    inside = (rows < limit)[:, None] & (d < D)[None, :]
    return tl.load(ptr + rows[:, None].to(tl.int64) * stride + d[None, :], mask=inside, other=0.0)


@triton.jit
def _store_rows(ptr, value, rows, limit, stride, D: tl.constexpr, BD: tl.constexpr):
    d = tl.arange(0, BD)
    inside = (rows < limit)[:, None] & (d < D)[None, :]
    tl.store(ptr + rows[:, None].to(tl.int64) * stride + d[None, :], cast(value, ptr.dtype.element_ty), mask=inside)


@triton.jit
def _logits(q, k, bias_ptr, rows, cols, n, m, bias_row, bias_col, scale, HAS_BIAS: tl.constexpr):
    """scale q k^T + bias as [rows, cols], -inf where hidden or outside."""
    s = dot(q, tl.trans(k)) * scale
    inside = (rows < n)[:, None] & (cols < m)[None, :]
    if HAS_BIAS:
        at = rows[:, None].to(tl.int64) * bias_row + cols[None, :] * bias_col
        s += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, s, float("-inf"))


@triton.jit
def _height(s, SCORE: tl.constexpr):
    """What the exponential is taken of, in base 2: -inf stays hidden."""
    if SCORE == COG:
        s = tl.where(s == float("-inf"), s, tl.abs(s))
    return s * TO_BASE_2


@triton.jit
def _weights(s, stat, SCORE: tl.constexpr):
    """Weights, and the signs that cog multiplies with; ``stat`` is the base-2 log-sum-exp, broadcast, finite."""
    if SCORE == RELU:
        return tl.maximum(s, 0.0), s
    p = tl.exp2(_height(s, SCORE) - stat)
    if SCORE == COG:
        sign = tl.where(s > 0, 1.0, tl.where(s < 0, -1.0, 0.0))
        return p * sign, sign
    return p, s


@triton.jit
def _heads(ptr, image, head, image_stride, head_stride):
    return ptr + image.to(tl.int64) * image_stride + head.to(tl.int64) * head_stride


@triton.jit
def dense_key_stats(
    q_ptr, k_ptr, bias_ptr, stat_ptr, heads, n, m,
    q_image, q_head, q_row, k_image, k_head, k_row, bias_image, bias_head, bias_row, bias_col, scale,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Base-2 log-sum-exp over the queries of each key [images * heads, m]."""
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    q_ptr = _heads(q_ptr, image, head, q_image, q_head)
    bias_ptr = _heads(bias_ptr, image, head, bias_image, bias_head)
    k = _rows(_heads(k_ptr, image, head, k_image, k_head), cols, m, k_row, D, BD)
    top = tl.full((BN,), float("-inf"), tl.float32)
    total = tl.zeros((BN,), tl.float32)
    for begin in range(0, n, BM):
        rows = begin + tl.arange(0, BM)
        q = _rows(q_ptr, rows, n, q_row, D, BD)
        s = _logits(q, k, bias_ptr, rows, cols, n, m, bias_row, bias_col, scale, HAS_BIAS) * TO_BASE_2
        higher = tl.maximum(top, tl.max(s, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(s - base[None, :]), 0)
        top = higher
    stat = tl.where(total == 0.0, 0.0, top + tl.log2(tl.where(total == 0.0, 1.0, total)))
    tl.store(stat_ptr + tl.program_id(1).to(tl.int64) * m + cols, stat, mask=cols < m)


@triton.jit
def dense_forward(
    q_ptr, k_ptr, v_ptr, bias_ptr, stat_ptr, out_ptr, heads, n, m,
    q_image, q_head, q_row, k_image, k_head, k_row, v_image, v_head, v_row, o_image, o_head, o_row,
    bias_image, bias_head, bias_row, bias_col, scale,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """A block of queries. cog writes its queries' log-sum-exp to ``stat``; reversed reads the keys' from it."""
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    k_ptr = _heads(k_ptr, image, head, k_image, k_head)
    v_ptr = _heads(v_ptr, image, head, v_image, v_head)
    bias_ptr = _heads(bias_ptr, image, head, bias_image, bias_head)
    q = _rows(_heads(q_ptr, image, head, q_image, q_head), rows, n, q_row, D, BD)
    acc = tl.zeros((BM, BDV), tl.float32)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    stat_ptr += tl.program_id(1).to(tl.int64) * (m if SCORE == REVERSED else n)
    for begin in range(0, m, BN):
        cols = begin + tl.arange(0, BN)
        k = _rows(k_ptr, cols, m, k_row, D, BD)
        v = _rows(v_ptr, cols, m, v_row, DV, BDV)
        s = _logits(q, k, bias_ptr, rows, cols, n, m, bias_row, bias_col, scale, HAS_BIAS)
        if SCORE == COG:
            height = _height(s, SCORE)
            higher = tl.maximum(top, tl.max(height, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            e, _ = _weights(s, base[:, None], SCORE)
            shrink = tl.exp2(top - base)
            total = total * shrink + tl.sum(tl.abs(e), 1)
            # exp(0) of a logit that is exactly 0 has sign 0 but counts in the sum.
            total += tl.sum(tl.where(s == 0.0, tl.exp2(-base)[:, None], 0.0), 1)
            acc = acc * shrink[:, None]
            top = higher
        elif SCORE == REVERSED:
            stat = tl.load(stat_ptr + cols, mask=cols < m, other=0.0)
            e, _ = _weights(s, stat[None, :], SCORE)
        else:
            e, _ = _weights(s, 0.0, SCORE)
        acc += dot(cast(e, v.dtype), v)
    if SCORE == COG:
        safe = tl.where(total == 0.0, 1.0, total)
        acc = acc / safe[:, None]
        tl.store(stat_ptr + rows, tl.where(total == 0.0, 0.0, top + tl.log2(safe)), mask=rows < n)
    _store_rows(_heads(out_ptr, image, head, o_image, o_head), acc, rows, n, o_row, DV, BDV)


@triton.jit
def _d_logits(s, p, sign, dp, delta, SCORE: tl.constexpr):
    """Gradient of the logits; ``delta`` is broadcast, the sum of P dP over the normalised axis."""
    if SCORE == RELU:
        return tl.where(s > 0, dp, 0.0)
    if SCORE == COG:
        return p * (sign * dp - delta)
    return p * (dp - delta)


@triton.jit
def dense_backward_keys(
    q_ptr, k_ptr, v_ptr, bias_ptr, stat_ptr, delta_ptr, grad_ptr, dk_ptr, dv_ptr, heads, n, m,
    q_image, q_head, q_row, k_image, k_head, k_row, v_image, v_head, v_row, g_image, g_head, g_row,
    bias_image, bias_head, bias_row, bias_col, scale,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """dK and dV of a block of keys; reversed also writes delta, of each key, which needs its whole dV first."""
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    q_ptr = _heads(q_ptr, image, head, q_image, q_head)
    grad_ptr = _heads(grad_ptr, image, head, g_image, g_head)
    bias_ptr = _heads(bias_ptr, image, head, bias_image, bias_head)
    k = _rows(_heads(k_ptr, image, head, k_image, k_head), cols, m, k_row, D, BD)
    v = _rows(_heads(v_ptr, image, head, v_image, v_head), cols, m, v_row, DV, BDV)
    dk = tl.zeros((BN, BD), tl.float32)
    dv = tl.zeros((BN, BDV), tl.float32)
    each = tl.program_id(1).to(tl.int64) * (m if SCORE == REVERSED else n)
    stat_ptr += each
    delta_ptr += each
    key_stat = tl.zeros((BN,), tl.float32)
    key_delta = tl.zeros((BN,), tl.float32)
    if SCORE == REVERSED:
        key_stat = tl.load(stat_ptr + cols, mask=cols < m, other=0.0)
        for begin in range(0, n, BM):
            rows = begin + tl.arange(0, BM)
            q = _rows(q_ptr, rows, n, q_row, D, BD)
            g = _rows(grad_ptr, rows, n, g_row, DV, BDV)
            s = _logits(q, k, bias_ptr, rows, cols, n, m, bias_row, bias_col, scale, HAS_BIAS)
            p, _ = _weights(s, key_stat[None, :], SCORE)
            dv += dot(tl.trans(cast(p, g.dtype)), g)
            key_delta += tl.sum(p * dot(g, tl.trans(v)), 0)
        tl.store(delta_ptr + cols, key_delta, mask=cols < m)
    for begin in range(0, n, BM):
        rows = begin + tl.arange(0, BM)
        q = _rows(q_ptr, rows, n, q_row, D, BD)
        g = _rows(grad_ptr, rows, n, g_row, DV, BDV)
        s = _logits(q, k, bias_ptr, rows, cols, n, m, bias_row, bias_col, scale, HAS_BIAS)
        dp = dot(g, tl.trans(v))
        if SCORE == REVERSED:
            p, sign = _weights(s, key_stat[None, :], SCORE)
            ds = _d_logits(s, p, sign, dp, key_delta[None, :], SCORE)
        elif SCORE == COG:
            stat = tl.load(stat_ptr + rows, mask=rows < n, other=0.0)
            delta = tl.load(delta_ptr + rows, mask=rows < n, other=0.0)
            p, sign = _weights(s, stat[:, None], SCORE)
            ds = _d_logits(s, p, sign, dp, delta[:, None], SCORE)
        else:
            p, sign = _weights(s, 0.0, SCORE)
            ds = _d_logits(s, p, sign, dp, 0.0, SCORE)
        if SCORE != REVERSED:
            dv += dot(tl.trans(cast(p, g.dtype)), g)
        dk += dot(tl.trans(cast(ds, q.dtype)), q) * scale
    at = tl.program_id(1).to(tl.int64) * m
    _store_rows(dk_ptr + at * D, dk, cols, m, D, D, BD)
    _store_rows(dv_ptr + at * DV, dv, cols, m, DV, DV, BDV)


@triton.jit
def dense_backward_queries(
    q_ptr, k_ptr, v_ptr, bias_ptr, stat_ptr, delta_ptr, grad_ptr, dq_ptr, heads, n, m,
    q_image, q_head, q_row, k_image, k_head, k_row, v_image, v_head, v_row, g_image, g_head, g_row,
    bias_image, bias_head, bias_row, bias_col, scale,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """dQ of a block of queries."""
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    k_ptr = _heads(k_ptr, image, head, k_image, k_head)
    v_ptr = _heads(v_ptr, image, head, v_image, v_head)
    bias_ptr = _heads(bias_ptr, image, head, bias_image, bias_head)
    q = _rows(_heads(q_ptr, image, head, q_image, q_head), rows, n, q_row, D, BD)
    g = _rows(_heads(grad_ptr, image, head, g_image, g_head), rows, n, g_row, DV, BDV)
    each = tl.program_id(1).to(tl.int64) * (m if SCORE == REVERSED else n)
    stat_ptr += each
    delta_ptr += each
    dq = tl.zeros((BM, BD), tl.float32)
    for begin in range(0, m, BN):
        cols = begin + tl.arange(0, BN)
        k = _rows(k_ptr, cols, m, k_row, D, BD)
        v = _rows(v_ptr, cols, m, v_row, DV, BDV)
        ds = _tile(
            q, k, v, g, bias_ptr, stat_ptr, delta_ptr, rows, cols, n, m, bias_row, bias_col, scale, SCORE, HAS_BIAS
        )
        dq += dot(cast(ds, k.dtype), k) * scale
    _store_rows(dq_ptr + tl.program_id(1).to(tl.int64) * n * D, dq, rows, n, D, D, BD)


@triton.jit
def _tile(
    q, k, v, g, bias_ptr, stat_ptr, delta_ptr, rows, cols, n, m, bias_row, bias_col, scale,
    SCORE: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of logits, with statistics that are known."""
    s = _logits(q, k, bias_ptr, rows, cols, n, m, bias_row, bias_col, scale, HAS_BIAS)
    dp = dot(g, tl.trans(v))
    if SCORE == RELU:
        p, sign = _weights(s, 0.0, SCORE)
        ds = _d_logits(s, p, sign, dp, 0.0, SCORE)
    elif SCORE == COG:
        stat = tl.load(stat_ptr + rows, mask=rows < n, other=0.0)
        delta = tl.load(delta_ptr + rows, mask=rows < n, other=0.0)
        p, sign = _weights(s, stat[:, None], SCORE)
        ds = _d_logits(s, p, sign, dp, delta[:, None], SCORE)
    else:
        stat = tl.load(stat_ptr + cols, mask=cols < m, other=0.0)
        delta = tl.load(delta_ptr + cols, mask=cols < m, other=0.0)
        p, sign = _weights(s, stat[None, :], SCORE)
        ds = _d_logits(s, p, sign, dp, delta[None, :], SCORE)
    return ds


@triton.jit
def dense_backward_bias(
    q_ptr, k_ptr, v_ptr, bias_ptr, stat_ptr, delta_ptr, grad_ptr, dbias_ptr, images, heads, n, m,
    q_image, q_head, q_row, k_image, k_head, k_row, v_image, v_head, v_row, g_image, g_head, g_row,
    bias_image, bias_head, bias_row, bias_col, scale, bias_images, bias_heads,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SCORE: tl.constexpr,
):  # fmt: skip
    """A tile of the bias gradient [bias_images, bias_heads, n, m], summed over the images and heads that share it."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    own_image, own_head = tl.program_id(2) // bias_heads, tl.program_id(2) % bias_heads
    bias_ptr = _heads(bias_ptr, own_image, own_head, bias_image, bias_head)
    total = tl.zeros((BM, BN), tl.float32)
    for i in range((images - own_image + bias_images - 1) // bias_images):
        for j in range((heads - own_head + bias_heads - 1) // bias_heads):
            image, head = own_image + i * bias_images, own_head + j * bias_heads
            q = _rows(_heads(q_ptr, image, head, q_image, q_head), rows, n, q_row, D, BD)
            k = _rows(_heads(k_ptr, image, head, k_image, k_head), cols, m, k_row, D, BD)
            v = _rows(_heads(v_ptr, image, head, v_image, v_head), cols, m, v_row, DV, BDV)
            g = _rows(_heads(grad_ptr, image, head, g_image, g_head), rows, n, g_row, DV, BDV)
            each = (image * heads + head) * (m if SCORE == REVERSED else n)
            total += _tile(
                q, k, v, g, bias_ptr, stat_ptr + each, delta_ptr + each, rows, cols, n, m, bias_row, bias_col, scale,
                SCORE, True,
            )  # fmt: skip
    at = dbias_ptr + tl.program_id(2).to(tl.int64) * n * m + rows[:, None].to(tl.int64) * m + cols[None, :]
    tl.store(at, total, mask=(rows < n)[:, None] & (cols < m)[None, :])


def _strides(*tensors: Tensor) -> list[int]:
    return [s for t in tensors for s in t.stride()[:3]]


def _bias_strides(bias: Tensor | None) -> list[int]:
    """Strides of a bias [B or 1, h or 1, N, M]; 0 where it is broadcast."""
    return [0] * 4 if bias is None else [s if n > 1 else 0 for n, s in zip(bias.shape, bias.stride())]


def _config(
    kernel: str, q: Tensor, v: Tensor, code: int, *, backward: bool = False, num_warps: int = 0
) -> dict[str, int]:
    """Block sizes and warps by head width: fewer queries a block where the rows are long."""
    d, dv = q.shape[3], v.shape[3]
    wide = max(block(d), block(dv)) > 64
    rows = 64 if wide or backward or q.dtype == torch.float32 else 128
    rows = min(rows, block(q.shape[2]))
    cols = min(32 if wide and backward else 64, block(v.shape[2]))
    default = {"BM": rows, "BN": cols, "num_warps": num_warps or (8 if wide or rows > 64 else 4), "num_stages": 2}
    exact = {"dim": max(block(d), block(dv)), "score": code, "bytes": q.element_size()}
    near = {"queries": q.shape[2], "keys": v.shape[2], "heads": q.shape[0] * q.shape[1]}
    return tuning.config(kernel, q.device, default, exact=exact, near=near)


def _constants(q: Tensor, v: Tensor, code: int) -> dict[str, int]:
    d, dv = q.shape[3], v.shape[3]
    return {"D": d, "DV": dv, "BD": block(d), "BDV": block(dv), "SCORE": code}


@torch.library.custom_op("zoo_kernels::dense_attention", mutates_args=())
def _dense_op(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, code: int) -> tuple[Tensor, Tensor]:
    """Output [B, h, N, dv] and statistics [B, h, N or M] (empty for relu)."""
    q, k, v = (unit_stride(t) for t in (q, k, v))
    b, h, n, d = q.shape
    m = k.shape[2]
    out = torch.empty(b, h, n, v.shape[3], dtype=q.dtype, device=q.device)
    stat = torch.empty(b, h, (0, n, m)[code], dtype=torch.float32, device=q.device)
    if b * h == 0:
        return out, stat
    constants, has_bias = _constants(q, v, code), bias is not None
    added = q if bias is None else bias
    with device_of(q):
        if code == CODES["reversed"]:
            own = _config("dense_key_stats", q, v, code, num_warps=4)
            dense_key_stats[(triton.cdiv(m, own["BN"]), b * h)](
                q, k, added, stat, h, n, m, *_strides(q, k), *_bias_strides(bias), scale,
                D=d, BD=constants["BD"], HAS_BIAS=has_bias, **own,
            )  # fmt: skip
        own = _config("dense_forward", q, v, code)
        dense_forward[(triton.cdiv(n, own["BM"]), b * h)](
            q, k, v, added, stat, out, h, n, m, *_strides(q, k, v, out), *_bias_strides(bias), scale, **constants,
            HAS_BIAS=has_bias, **own,
        )  # fmt: skip
    return out, stat


@_dense_op.register_fake
def _(q, k, v, bias, scale, code):
    b, h, n, _ = q.shape
    out = torch.empty(b, h, n, v.shape[3], dtype=q.dtype, device=q.device)
    return out, torch.empty(b, h, (0, n, k.shape[2])[code], dtype=torch.float32, device=q.device)


@torch.library.custom_op("zoo_kernels::dense_attention_backward", mutates_args=())
def _dense_grad_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, stat: Tensor,
    scale: float, code: int, bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v, grad = (unit_stride(t) for t in (q, k, v, grad))
    b, h, n, _ = q.shape
    m = k.shape[2]
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    dbias = torch.zeros(bias.shape if bias_grad and bias is not None else (0,), dtype=torch.float32, device=q.device)
    if b * h == 0:
        return dq, dk, dv, dbias
    if code == CODES["cog"]:
        delta = (grad.float() * out.float()).sum(-1)
    else:
        delta = torch.empty_like(stat)
    constants = _constants(q, v, code)
    added = q if bias is None else bias
    # Two accumulators, or a tile beside the scores: eight warps, for fewer registers a thread.
    for_keys = _config("dense_backward_keys", q, v, code, backward=True, num_warps=8)
    for_queries = _config("dense_backward_queries", q, v, code, backward=True)
    for_bias = _config("dense_backward_bias", q, v, code, backward=True, num_warps=8)
    common = (*_strides(q, k, v, grad), *_bias_strides(bias), scale)
    with device_of(q):
        dense_backward_keys[(triton.cdiv(m, for_keys["BN"]), b * h)](
            q, k, v, added, stat, delta, grad, dk, dv, h, n, m, *common, **constants, HAS_BIAS=bias is not None,
            **for_keys,
        )  # fmt: skip
        dense_backward_queries[(triton.cdiv(n, for_queries["BM"]), b * h)](
            q, k, v, added, stat, delta, grad, dq, h, n, m, *common, **constants, HAS_BIAS=bias is not None,
            **for_queries,
        )  # fmt: skip
        if bias_grad and bias is not None:
            grid = (triton.cdiv(n, for_bias["BM"]), triton.cdiv(m, for_bias["BN"]), bias.shape[0] * bias.shape[1])
            dense_backward_bias[grid](
                q, k, v, added, stat, delta, grad, dbias, b, h, n, m, *common, *bias.shape[:2], **constants, **for_bias
            )
    return dq, dk, dv, dbias


@_dense_grad_op.register_fake
def _(grad, q, k, v, bias, out, stat, scale, code, bias_grad):
    made = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v)]
    shape = bias.shape if bias_grad and bias is not None else (0,)
    return *made, torch.empty(shape, dtype=torch.float32, device=q.device)


def _dense_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.how = inputs[4:]


def _dense_grad(ctx, grad: Tensor, _: Tensor):
    q, k, v, bias, out, stat = ctx.saved_tensors
    wanted = bias is not None and ctx.needs_input_grad[3]
    dq, dk, dv, dbias = _dense_grad_op(grad, q, k, v, bias, out, stat, *ctx.how, wanted)
    return dq, dk, dv, dbias.to(bias.dtype) if wanted else None, None, None


_dense_op.register_autograd(_dense_grad, setup_context=_dense_setup)


def can_run(q: Tensor, k: Tensor, v: Tensor, *, score: str = "softmax", **_: object) -> str | None:
    """Why the kernels cannot serve a call, or None."""
    if score == "softmax":
        return "score 'softmax' is PyTorch's own scaled_dot_product_attention, which eager calls"
    if max(q.shape[3], v.shape[3]) > MAX_HEAD_DIM:
        return f"head_dim {max(q.shape[3], v.shape[3])}, the kernels take at most {MAX_HEAD_DIM}"
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, scale: float | None = None, score: str = "softmax"
) -> Tensor:
    """See :func:`zoo_kernels.dense_attention.dense_attention`; ``bias`` has four dimensions."""
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.where(bias, 0.0, float("-inf"))
        # Queries and keys in full, so that a tile's gradient has one place; images and heads stay shared.
        bias = bias.expand(-1, -1, q.shape[2], k.shape[2])
    return _dense_op(q, k, v, bias, scale, CODES[score])[0]


def build_cases() -> dict[str, BuildCase]:
    """Each score at head_dim 64, with a shared bias."""
    from zoo_kernels.dense_attention import dense_attention

    qkv = tuple(torch.zeros(1, 6, 1024, 64, dtype=torch.bfloat16) for _ in range(3))
    bias = torch.zeros(1, 6, 1024, 1024, dtype=torch.bfloat16)
    return {
        f"{score}{', bias' if b is not None else ''}": BuildCase(dense_attention, qkv, {"score": score, "bias": b})
        for score, b in (("relu", None), ("cog", bias), ("reversed", None), ("reversed", bias))
    }
