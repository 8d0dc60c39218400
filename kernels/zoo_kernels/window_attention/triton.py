"""Window attention on the GPU: partition, roll, padding and their reversal happen in the load and store addresses.

A program owns one head and walks over windows, so that the bias, padded to a power of two, is read once. Keys and
values of a window stay on chip while its queries pass in blocks. The backward recomputes the weights, adds the bias
gradient up over the program's windows, and writes it once; a second stage sums over the programs. There are no atomics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from zoo_kernels import tuning
from zoo_kernels.dispatch import multiprocessors
from zoo_kernels.testing import BuildCase
from zoo_kernels.tiles import LOG2E, block, cast, device_of, dot, unit_stride

MAX_TOKENS = 256  # of a window
MAX_HEAD_DIM = 128


@triton.jit
def _places(n, top, left, window_w: tl.constexpr, shift_h, shift_w, h, w, padded_h, padded_w):
    """Row, column, whether in the map, and region of tokens ``n`` of the window at (top, left) of the rolled map."""
    row = top + n // window_w + shift_h
    col = left + n % window_w + shift_w
    region = tl.where(row >= padded_h, 2, 0) + tl.where(col >= padded_w, 1, 0)
    row = tl.where(row >= padded_h, row - padded_h, row)
    col = tl.where(col >= padded_w, col - padded_w, col)
    return row, col, (row < h) & (col < w), region


@triton.jit
def _weights(
    q, k, added, region_q, region_k, key_seen, scale, HAS_BIAS: tl.constexpr, SHIFTED: tl.constexpr
):  # fmt: skip
    """Softmax weights [BM, BN] of a block, float32; a row without any key is zero. ``scale`` includes log2(e)."""
    s = dot(q, tl.trans(k)) * scale
    if HAS_BIAS:
        s += added
    seen = key_seen[None, :]
    if SHIFTED:
        seen = seen & (region_q[:, None] == region_k[None, :])
    s = tl.where(seen, s, float("-inf"))
    top = tl.max(s, 1)
    e = tl.exp2(s - tl.where(top == float("-inf"), 0.0, top)[:, None])
    total = tl.sum(e, 1)
    return e, tl.where(total == 0.0, 1.0, total)


@triton.jit
def window_forward(
    q_ptr, k_ptr, v_ptr, bias_ptr, pad_k_ptr, pad_v_ptr, out_ptr,
    total, windows, windows_w,
    h, w, kh, kw, shift_h, shift_w,
    q_image, q_row, q_col, k_image, k_row, k_col, o_image, o_row, o_col, scale,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, KEY_H: tl.constexpr, KEY_W: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BLOCKS: tl.constexpr,
    HAS_BIAS: tl.constexpr, SHIFTED: tl.constexpr, PADDED: tl.constexpr, PAD_VALUE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    m, n, d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BD)
    in_head = d < D
    channel = head * D + d
    added = tl.zeros((BM, BN), tl.float32)
    if HAS_BIAS:
        bias_ptr += head * BLOCKS * BM * BN + m[:, None] * BN + n[None, :]
        if BLOCKS == 1:
            added = tl.load(bias_ptr)
    padded_h, padded_w = windows // windows_w * WINDOW_H, windows_w * WINDOW_W
    padded_kh, padded_kw = windows // windows_w * KEY_H, windows_w * KEY_W
    for index in range(tl.program_id(0), total, tl.num_programs(0)):
        image = (index // windows).to(tl.int64)
        y, x = index % windows // windows_w, index % windows_w
        k_row_at, k_col_at, real, region_k = _places(
            n, y * KEY_H, x * KEY_W, KEY_W, shift_h, shift_w, kh, kw, padded_kh, padded_kw
        )
        seen = n < KEY_H * KEY_W
        stored = seen & real if PADDED else seen
        at = image * k_image + k_row_at * k_row + k_col_at * k_col
        where = at[:, None] + channel[None, :]
        inside = stored[:, None] & in_head[None, :]
        k = tl.load(k_ptr + where, mask=inside, other=0.0)
        v = tl.load(v_ptr + where, mask=inside, other=0.0)
        if PAD_VALUE:
            pad_k = tl.load(pad_k_ptr + channel, mask=in_head, other=0.0)
            pad_v = tl.load(pad_v_ptr + channel, mask=in_head, other=0.0)
            k = tl.where((seen ^ (seen & real))[:, None], pad_k[None, :], k)
            v = tl.where((seen ^ (seen & real))[:, None], pad_v[None, :], v)
            stored = seen
        for part in range(BLOCKS):
            qm = part * BM + m
            row, col, real_q, region_q = _places(
                qm, y * WINDOW_H, x * WINDOW_W, WINDOW_W, shift_h, shift_w, h, w, padded_h, padded_w
            )
            real_q = (qm < WINDOW_H * WINDOW_W) & real_q if PADDED else qm < WINDOW_H * WINDOW_W
            inside_q = real_q[:, None] & in_head[None, :]
            place = image * q_image + row * q_row + col * q_col
            q = tl.load(q_ptr + place[:, None] + channel[None, :], mask=inside_q, other=0.0)
            if HAS_BIAS and BLOCKS > 1:
                added = tl.load(bias_ptr + part * BM * BN)
            e, sums = _weights(q, k, added, region_q, region_k, stored, scale, HAS_BIAS, SHIFTED)
            o = dot(cast(e, v.dtype), v) / sums[:, None]
            place = image * o_image + row * o_row + col * o_col
            tl.store(out_ptr + place[:, None] + channel[None, :], cast(o, out_ptr.dtype.element_ty), mask=inside_q)


@triton.jit
def window_backward(
    q_ptr, k_ptr, v_ptr, bias_ptr, pad_k_ptr, pad_v_ptr, grad_ptr, dq_ptr, dk_ptr, dv_ptr, dbias_ptr, dpad_ptr,
    total, windows, windows_w,
    h, w, kh, kw, shift_h, shift_w,
    q_image, q_row, q_col, k_image, k_row, k_col, o_image, o_row, o_col,
    dq_image, dq_row, dq_col, dk_image, dk_row, dk_col, scale,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, KEY_H: tl.constexpr, KEY_W: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BLOCKS: tl.constexpr,
    HAS_BIAS: tl.constexpr, SHIFTED: tl.constexpr, PADDED: tl.constexpr, PAD_VALUE: tl.constexpr,
    BIAS_GRAD: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    program = tl.program_id(0) * tl.num_programs(1) + head
    m, n, d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BD)
    in_head = d < D
    channel = head * D + d
    added = tl.zeros((BM, BN), tl.float32)
    dbias = tl.zeros((BM, BN), tl.float32)
    tile = m[:, None] * BN + n[None, :]
    dbias_ptr += program.to(tl.int64) * BLOCKS * BM * BN
    dpad_ptr += program.to(tl.int64) * 2 * BN * BD
    if HAS_BIAS:
        bias_ptr += head * BLOCKS * BM * BN + tile
        if BLOCKS == 1:
            added = tl.load(bias_ptr)
    padded_h, padded_w = windows // windows_w * WINDOW_H, windows_w * WINDOW_W
    padded_kh, padded_kw = windows // windows_w * KEY_H, windows_w * KEY_W
    for index in range(tl.program_id(0), total, tl.num_programs(0)):
        image = (index // windows).to(tl.int64)
        y, x = index % windows // windows_w, index % windows_w
        k_row_at, k_col_at, real, region_k = _places(
            n, y * KEY_H, x * KEY_W, KEY_W, shift_h, shift_w, kh, kw, padded_kh, padded_kw
        )
        seen = n < KEY_H * KEY_W
        stored = seen & real if PADDED else seen
        at = image * k_image + k_row_at * k_row + k_col_at * k_col
        where = at[:, None] + channel[None, :]
        inside_k = stored[:, None] & in_head[None, :]
        k = tl.load(k_ptr + where, mask=inside_k, other=0.0)
        v = tl.load(v_ptr + where, mask=inside_k, other=0.0)
        keys = stored
        if PAD_VALUE:
            pad_k = tl.load(pad_k_ptr + channel, mask=in_head, other=0.0)
            pad_v = tl.load(pad_v_ptr + channel, mask=in_head, other=0.0)
            k = tl.where((seen ^ (seen & real))[:, None], pad_k[None, :], k)
            v = tl.where((seen ^ (seen & real))[:, None], pad_v[None, :], v)
            keys = seen
        dk = tl.zeros((BN, BD), tl.float32)
        dv = tl.zeros((BN, BD), tl.float32)
        for part in range(BLOCKS):
            qm = part * BM + m
            row, col, real_q, region_q = _places(
                qm, y * WINDOW_H, x * WINDOW_W, WINDOW_W, shift_h, shift_w, h, w, padded_h, padded_w
            )
            real_q = (qm < WINDOW_H * WINDOW_W) & real_q if PADDED else qm < WINDOW_H * WINDOW_W
            inside = real_q[:, None] & in_head[None, :]
            place = image * q_image + row * q_row + col * q_col
            q = tl.load(q_ptr + place[:, None] + channel[None, :], mask=inside, other=0.0)
            place = image * o_image + row * o_row + col * o_col
            g = tl.load(grad_ptr + place[:, None] + channel[None, :], mask=inside, other=0.0)
            if HAS_BIAS and BLOCKS > 1:
                added = tl.load(bias_ptr + part * BM * BN)
            e, sums = _weights(q, k, added, region_q, region_k, keys, scale * 1.4426950408889634, HAS_BIAS, SHIFTED)
            p = e / sums[:, None]
            dp = dot(g, tl.trans(v))
            ds = p * (dp - tl.sum(p * dp, 1)[:, None])
            dv += dot(tl.trans(cast(p, g.dtype)), g)
            low = cast(ds, q.dtype)
            dk += dot(tl.trans(low), q) * scale
            dq = dot(low, k) * scale
            place = image * dq_image + row * dq_row + col * dq_col
            tl.store(dq_ptr + place[:, None] + channel[None, :], cast(dq, dq_ptr.dtype.element_ty), mask=inside)
            if BIAS_GRAD:
                if BLOCKS == 1:
                    dbias += ds
                else:  # the program's own tile, which stays in the cache
                    own = dbias_ptr + part * BM * BN + tile
                    tl.store(own, tl.load(own) + ds)
        at = image * dk_image + k_row_at * dk_row + k_col_at * dk_col
        where = at[:, None] + channel[None, :]
        tl.store(dk_ptr + where, cast(dk, dk_ptr.dtype.element_ty), mask=inside_k)
        tl.store(dv_ptr + where, cast(dv, dv_ptr.dtype.element_ty), mask=inside_k)
        if PAD_VALUE:
            # The program's own tiles, summed over tokens and programs afterwards.
            outside = (seen ^ (seen & real))[:, None] & in_head[None, :]
            own = dpad_ptr + n[:, None] * BD + d[None, :]
            tl.store(own, tl.load(own, mask=outside, other=0.0) + dk, mask=outside)
            tl.store(own + BN * BD, tl.load(own + BN * BD, mask=outside, other=0.0) + dv, mask=outside)
    if BIAS_GRAD and BLOCKS == 1:
        tl.store(dbias_ptr + tile, dbias)


class _Call:
    """The geometry of a call and the launch arguments that forward and backward share."""

    def __init__(
        self, q: Tensor, kv_size: list[int], heads: int, window: list[int], kv_window: list[int], shift: list[int],
        bias: Tensor | None, pad: bool, *, backward: bool,
    ):  # fmt: skip
        b, h, w, c = q.shape
        self.heads, self.d = heads, c // heads
        rows, cols = -(-h // window[0]), -(-w // window[1])
        self.total = b * rows * cols
        self.n, self.nk = window[0] * window[1], kv_window[0] * kv_window[1]
        self.bn, self.bd = block(self.nk), block(self.d)
        padded = (rows * window[0], cols * window[1]) != (h, w)
        padded |= (rows * kv_window[0], cols * kv_window[1]) != tuple(kv_size)
        own = tuning.config(
            "window_backward" if backward else "window_forward",
            q.device,
            {
                # A tile of scores holds at most 4096 elements: the backward keeps four of them in registers.
                "BM": min(block(self.n), 64, 4096 // self.bn),
                "num_warps": 4 if self.bn <= 64 and not (backward and pad and padded) else 8,
                "num_stages": 2,
            },
            exact={"dim": self.bd, "keys": self.bn, "padding": int(pad and padded), "bytes": q.element_size()},
            near={"windows": self.total * heads},
        )
        self.bm = own["BM"]
        self.blocks = triton.cdiv(self.n, self.bm)
        self.sizes = (self.total, rows * cols, cols, h, w, *kv_size, *shift)
        self.constants = {
            "WINDOW_H": window[0], "WINDOW_W": window[1], "KEY_H": kv_window[0], "KEY_W": kv_window[1], "D": self.d,
            **own, "BN": self.bn, "BD": self.bd, "BLOCKS": self.blocks,
            "HAS_BIAS": bias is not None, "SHIFTED": any(shift), "PADDED": padded, "PAD_VALUE": pad and padded,
        }  # fmt: skip
        # Enough programs to fill the card several times, few enough that the bias is read by few of them.
        fill = multiprocessors(q.device) * (4 if backward else 8)
        self.programs = max(1, min(self.total, triton.cdiv(fill, heads)))
        self.bias = q if bias is None else self._padded_bias(bias)

    def _padded_bias(self, bias: Tensor) -> Tensor:
        """[heads, BLOCKS * BM, BN], float32, in units of log2(e)."""
        below, right = self.blocks * self.bm - self.n, self.bn - self.nk
        return F.pad(bias.float() * LOG2E, (0, right, 0, below)).contiguous()


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, pads: tuple[Tensor, Tensor] | None,
    heads: int, window: Sequence[int], kv_window: Sequence[int], shift: Sequence[int], scale: float,
) -> Tensor:  # fmt: skip
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if q.shape[0] == 0:
        return out
    call = _Call(q, list(k.shape[1:3]), heads, window, kv_window, shift, bias, pads is not None, backward=False)
    with device_of(q):
        window_forward[(call.programs, heads)](
            q, k, v, call.bias, *(pads or (q, q)), out, *call.sizes,
            *_strides(q), *_strides(k), *_strides(out), scale * LOG2E, **call.constants,
        )  # fmt: skip
    return out


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, bias: Tensor | None,
    pads: tuple[Tensor, Tensor] | None, heads: int, window: list[int], kv_window: list[int], shift: list[int],
    scale: float,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Fill dq, dk and dv; return the gradients of the bias and of the padding's k and v [2, C]."""
    call = _Call(q, list(k.shape[1:3]), heads, window, kv_window, shift, bias, pads is not None, backward=True)
    tiles = (call.programs, heads, call.blocks * call.bm, call.bn)
    dbias = torch.zeros(tiles if bias is not None else (1,), dtype=torch.float32, device=q.device)
    has_pad = call.constants["PAD_VALUE"]
    pads_shape = (call.programs, heads, 2, call.bn, call.bd)
    dpad = torch.zeros(pads_shape if has_pad else (1,), dtype=torch.float32, device=q.device)
    grad = unit_stride(grad)
    with device_of(q):
        window_backward[(call.programs, heads)](
            q, k, v, call.bias, *(pads or (q, q)), grad, dq, dk, dv, dbias, dpad, *call.sizes,
            *_strides(q), *_strides(k), *_strides(grad), *_strides(dq), *_strides(dk), scale, **call.constants,
            BIAS_GRAD=bias is not None,
        )  # fmt: skip
    return (
        None if bias is None else dbias.sum(0)[:, : call.n, : call.nk].to(bias.dtype),
        dpad.sum((0, 3))[:, :, : call.d].transpose(0, 1).reshape(2, -1) if has_pad else None,
    )


@torch.library.custom_op("zoo_kernels::window_attention", mutates_args=())
def _window_op(
    qkv: Tensor,
    bias: Tensor | None,
    pad: Tensor | None,
    heads: int,
    window: Sequence[int],
    shift: Sequence[int],
    scale: float,
) -> Tensor:
    q, k, v = unit_stride(qkv).chunk(3, -1)
    pads = None if pad is None else pad.contiguous().chunk(3)[1:]
    return _forward(q, k, v, bias, pads, heads, window, window, shift, scale)


@_window_op.register_fake
def _(qkv, bias, pad, heads, window, shift, scale):
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


@torch.library.custom_op("zoo_kernels::window_attention_backward", mutates_args=())
def _window_grad_op(
    grad: Tensor, qkv: Tensor, bias: Tensor | None, pad: Tensor | None,
    heads: int, window: Sequence[int], shift: Sequence[int], scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    dbias, dpad = qkv.new_zeros(0) if bias is None else torch.zeros_like(bias), None
    if qkv.shape[0]:
        q, k, v = unit_stride(qkv).chunk(3, -1)
        pads = None if pad is None else pad.contiguous().chunk(3)[1:]
        found, dpad = _backward(grad, q, k, v, *dqkv.chunk(3, -1), bias, pads, heads, window, window, shift, scale)
        dbias = dbias if found is None else found.contiguous()
    if pad is None:
        return dqkv, dbias, qkv.new_zeros(0)
    whole = torch.zeros(3, pad.shape[0] // 3, dtype=pad.dtype, device=pad.device)
    if dpad is not None:
        whole[1:] = dpad
    return dqkv, dbias, whole.flatten()


@_window_grad_op.register_fake
def _(grad, qkv, bias, pad, heads, window, shift, scale):
    none = qkv.new_empty(0)
    return (
        torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device),
        none if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=bias.device),
        none if pad is None else torch.empty(pad.shape, dtype=pad.dtype, device=pad.device),
    )


def _window_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.how = inputs[3:]


def _window_grad(ctx, grad: Tensor):
    qkv, bias, pad = ctx.saved_tensors
    dqkv, dbias, dpad = _window_grad_op(grad, qkv, bias, pad, *ctx.how)
    return dqkv, None if bias is None else dbias, None if pad is None else dpad, None, None, None, None


_window_op.register_autograd(_window_grad, setup_context=_window_setup)


@torch.library.custom_op("zoo_kernels::window_cross_attention", mutates_args=())
def _cross_op(
    q: Tensor,
    kv: Tensor,
    bias: Tensor | None,
    heads: int,
    window: Sequence[int],
    kv_window: Sequence[int],
    scale: float,
) -> Tensor:
    k, v = unit_stride(kv).chunk(2, -1)
    return _forward(unit_stride(q), k, v, bias, None, heads, window, kv_window, [0, 0], scale)


@_cross_op.register_fake
def _(q, kv, bias, heads, window, kv_window, scale):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@torch.library.custom_op("zoo_kernels::window_cross_attention_backward", mutates_args=())
def _cross_grad_op(
    grad: Tensor, q: Tensor, kv: Tensor, bias: Tensor | None,
    heads: int, window: Sequence[int], kv_window: Sequence[int], scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    dkv = torch.empty(kv.shape, dtype=kv.dtype, device=kv.device)
    dbias = q.new_zeros(0) if bias is None else torch.zeros_like(bias)
    if q.shape[0]:
        k, v = unit_stride(kv).chunk(2, -1)
        found, _ = _backward(
            grad, unit_stride(q), k, v, dq, *dkv.chunk(2, -1), bias, None, heads, window, kv_window, [0, 0], scale
        )
        dbias = dbias if found is None else found.contiguous()
    return dq, dkv, dbias


@_cross_grad_op.register_fake
def _(grad, q, kv, bias, heads, window, kv_window, scale):
    made = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, kv)]
    return *made, q.new_empty(0) if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)


def _cross_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.how = inputs[3:]


def _cross_grad(ctx, grad: Tensor):
    q, kv, bias = ctx.saved_tensors
    dq, dkv, dbias = _cross_grad_op(grad, q, kv, bias, *ctx.how)
    return dq, dkv, None if bias is None else dbias, None, None, None, None


_cross_op.register_autograd(_cross_grad, setup_context=_cross_setup)


def _refusal(tokens: int, head_dim: int) -> str | None:
    if tokens > MAX_TOKENS:
        return f"window: {tokens} tokens, the kernels take at most {MAX_TOKENS}"
    if head_dim > MAX_HEAD_DIM:
        return f"head_dim {head_dim}, the kernels take at most {MAX_HEAD_DIM}"
    return None


def can_run(qkv: Tensor, *, num_heads: int, window: tuple[int, int], **_: object) -> str | None:
    """Why the kernels cannot serve a call, or None."""
    return _refusal(window[0] * window[1], qkv.shape[-1] // 3 // num_heads)


def cross_can_run(
    q: Tensor, kv: Tensor, *, num_heads: int, window: tuple[int, int], kv_window: tuple[int, int], **_: object
) -> str | None:
    """Why the kernels cannot serve a cross call, or None."""
    return _refusal(max(window[0] * window[1], kv_window[0] * kv_window[1]), q.shape[-1] // num_heads)


def forward(
    qkv: Tensor,
    *,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    bias: Tensor | None = None,
    pad_value: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See :func:`zoo_kernels.window_attention.window_attention`."""
    scale = (qkv.shape[-1] // 3 // num_heads) ** -0.5 if scale is None else float(scale)
    pad = None if pad_value is None else pad_value.to(qkv.dtype)
    return _window_op(qkv, bias, pad, num_heads, list(window), list(shift), scale)


def cross(
    q: Tensor,
    kv: Tensor,
    *,
    num_heads: int,
    window: tuple[int, int],
    kv_window: tuple[int, int],
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See :func:`zoo_kernels.window_attention.window_cross_attention`."""
    scale = (q.shape[-1] // num_heads) ** -0.5 if scale is None else float(scale)
    return _cross_op(q, kv, bias, num_heads, list(window), list(kv_window), scale)


def build_cases() -> dict[str, BuildCase]:
    """Swin's first stage with everything on, wide windows, and the cross form."""
    from zoo_kernels.window_attention import window_attention, window_cross_attention

    def call(size: int, window: int, heads: int, *, shift: int, pad: bool) -> BuildCase:
        c, n = heads * 32, window * window
        half = {"dtype": torch.bfloat16}
        return BuildCase(
            window_attention,
            (torch.zeros(2, size, size, 3 * c, **half),),
            {
                "num_heads": heads,
                "window": window,
                "shift": shift,
                "bias": torch.zeros(heads, n, n),
                "pad_value": torch.zeros(3 * c, **half) if pad else None,
            },
        )

    half = {"dtype": torch.bfloat16}
    return {
        "window 7": call(56, 7, 3, shift=0, pad=False),
        "window 7, shift, padding": call(40, 7, 3, shift=3, pad=True),
        "window 16, shift": call(64, 16, 4, shift=8, pad=False),
        "cross 8 to 4": BuildCase(
            window_cross_attention,
            (torch.zeros(2, 64, 64, 96, **half), torch.zeros(2, 32, 32, 192, **half)),
            {"num_heads": 3, "window": 8, "kv_window": 4, "bias": torch.zeros(3, 64, 16)},
        ),
    }
