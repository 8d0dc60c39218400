"""Attention between the windows of two maps on the CPU, for maps of any number of dimensions.

Windows are small matrices: the weights of a few of them stay in the cache, which PyTorch's attention does not use where
the bias needs a gradient. Where a window has few keys the weights are kept transposed, keys first: a softmax over a
short last dimension takes several times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 1 << 18  # of weights that are worked on at a time, for each thread
SHORT = 32  # keys of a window; with fewer, PyTorch's attention is the slower way in the forward too


def cross_windows(
    q: Tensor,
    kv: Tensor,
    heads: int,
    window: Sequence[int],
    kv_window: Sequence[int],
    bias: Tensor | None,
    scale: float,
) -> Tensor:
    """See :func:`zoo_kernels.window_attention.window_cross_attention`, for maps ``[B, *sizes, C]`` on the CPU.

    Args:
        q: ``[B, *sizes, C]``.
        kv: ``[B, *smaller sizes, 2C]``.
        heads: divides C.
        window, kv_window: sizes of a window; both maps are cut into the same numbers of them.
        bias: ``[heads, query tokens, key tokens]``, or None.
        scale: of the logits.
    """
    sizes, small = q.shape[1:-1], kv.shape[1:-1]
    counts = [-(-n // w) for n, w in zip(sizes, window)]
    hidden = None
    if any(n % w for n, w in zip(small, kv_window)):
        real = _padded(kv.new_ones(1, *small, 1), kv_window)
        hidden = _cut(real, counts, kv_window, 1)[:, :, 0] == 0  # [windows of an image, Nk]
    q, kv = _padded(q, window), _padded(kv, kv_window)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, kv, bias))
    with torch.autocast("cpu", enabled=False):  # dtypes are chosen here
        if needs_grad:
            out = _Cross.apply(q, kv, bias, hidden, heads, counts, tuple(window), tuple(kv_window), scale)
        else:
            q_win, k_win, v_win = _parts(q, kv, heads, counts, window, kv_window)
            weights_of = _weights(bias, hidden, heads, scale, q_win.dtype)
            out = _forward(q_win, k_win, v_win, bias, hidden, heads, scale, weights_of).to(q.dtype)
            out = _joined(out, counts, window, heads)
    for axis, size in enumerate(sizes, 1):
        out = out.narrow(axis, 0, size)
    return out


def _padded(x: Tensor, window: Sequence[int]) -> Tensor:
    """Zeros behind, up to whole windows."""
    missing = [-n % w for n, w in zip(x.shape[1:-1], window)]
    return F.pad(x, [0, 0, *(p for m in reversed(missing) for p in (0, m))]) if any(missing) else x


def _cut(x: Tensor, counts: Sequence[int], window: Sequence[int], heads: int) -> Tensor:
    """``[B, *sizes, C] -> [B * windows * heads, tokens, C / heads]``, in one copy."""
    n = len(window)
    x = x.reshape(x.shape[0], *(s for pair in zip(counts, window) for s in pair), heads, -1)
    order = [0, *range(1, 2 * n, 2), 2 * n + 1, *range(2, 2 * n + 1, 2), 2 * n + 2]
    return x.permute(order).reshape(-1, math.prod(window), x.shape[-1])


def _joined(x: Tensor, counts: Sequence[int], window: Sequence[int], heads: int) -> Tensor:
    """The inverse of :func:`_cut`."""
    n = len(window)
    x = x.reshape(-1, *counts, heads, *window, x.shape[-1])
    order = [0, *(i for pair in zip(range(1, n + 1), range(n + 2, 2 * n + 2)) for i in pair), n + 1, 2 * n + 2]
    return x.permute(order).reshape(-1, *(c * w for c, w in zip(counts, window)), heads * x.shape[-1])


def _parts(
    q: Tensor, kv: Tensor, heads: int, counts: Sequence[int], window: Sequence[int], kv_window: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[windows * heads, tokens, d]``, in float32 where they are in half precision."""
    k, v = kv.chunk(2, -1)
    wide = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    parts = (_cut(q, counts, window, heads), _cut(k, counts, kv_window, heads), _cut(v, counts, kv_window, heads))
    return tuple(t.to(wide) for t in parts)  # type: ignore[return-value]


class _weights:
    """Softmax weights ``[windows * heads, Nk, Nq]`` of a range of windows, keys first."""

    def __init__(self, bias: Tensor | None, hidden: Tensor | None, heads: int, scale: float, dtype: torch.dtype):
        self.bias = None if bias is None else bias.detach().transpose(1, 2).to(dtype)
        self.hidden, self.heads, self.scale = hidden, heads, scale
        self.repeated: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, first: int) -> Tensor:
        """Of queries and keys ``[c * heads, tokens, d]`` of the windows from number ``first`` on."""
        if self.bias is None:
            logits = torch.bmm(k, q.transpose(1, 2)).mul_(self.scale)
        else:
            if self.repeated is None or self.repeated.shape[0] < len(q):
                self.repeated = self.bias.repeat(len(q) // self.heads, 1, 1)
            logits = torch.baddbmm(self.repeated[: len(q)], k, q.transpose(1, 2), alpha=self.scale)
        if self.hidden is not None:
            which = torch.arange(first, first + len(q) // self.heads, device=q.device) % len(self.hidden)
            rows = self.hidden[which].repeat_interleave(self.heads, 0)[:, :, None]  # [c * heads, Nk, 1]
            logits.masked_fill_(rows, float("-inf"))
        return logits.softmax(1)


def _step(heads: int, queries: int, keys: int, itemsize: int) -> int:
    """Windows of a chunk."""
    return max(1, CHUNK_BYTES * torch.get_num_threads() // (heads * queries * keys * itemsize))


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    hidden: Tensor | None,
    heads: int,
    scale: float,
    weights_of: _weights,
) -> Tensor:
    """``[windows * heads, Nq, d]``."""
    if k.shape[1] >= SHORT and hidden is None:
        q, k, v = (t.unflatten(0, (-1, heads)) for t in (q, k, v))
        mask = None if bias is None else bias.detach().to(q.dtype)[None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).flatten(0, 1)
    out = torch.empty_like(q)
    step = _step(heads, q.shape[1], k.shape[1], q.element_size()) * heads
    for i in range(0, len(q), step):
        part = slice(i, i + step)
        weights = weights_of(q[part], k[part], i // heads)
        out[part] = torch.bmm(weights.transpose(1, 2), v[part])  # vmap knows no out=
    return out


class _Cross(torch.autograd.Function):
    """Attention between windows, with a backward that computes the weights anew, a few windows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        kv: Tensor,
        bias: Tensor | None,
        hidden: Tensor | None,
        heads: int,
        counts: Sequence[int],
        window: Sequence[int],
        kv_window: Sequence[int],
        scale: float,
    ) -> Tensor:
        parts = _parts(q, kv, heads, counts, window, kv_window)
        weights_of = _weights(bias, hidden, heads, scale, parts[0].dtype)
        out = _forward(*parts, bias, hidden, heads, scale, weights_of)
        ctx.save_for_backward(*parts, bias, hidden)
        ctx.how = heads, counts, window, kv_window, scale, q.dtype
        return _joined(out.to(q.dtype), counts, window, heads)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            return _Cross.gradients(ctx, grad)

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See :meth:`backward`."""
        # With P the weights and D the gradient of the output: dV = P^T D, dS = P (D V^T - rowsum(P D V^T)),
        # dQ = scale dS K, dK = scale dS^T Q, dbias = sum of dS over the windows; all with the keys first here.
        q, k, v, bias, hidden = ctx.saved_tensors
        heads, counts, window, kv_window, scale, dtype = ctx.how
        d_out = _cut(grad, counts, window, heads).to(q.dtype)
        dq = q.new_empty(q.shape)
        d_kv = k.new_empty(len(k) // heads, 2, heads, *k.shape[1:])  # [windows, 2, heads, Nk, d]
        weights_of = _weights(bias, hidden, heads, scale, q.dtype)
        d_bias = None if bias is None else q.new_zeros(heads, k.shape[1], q.shape[1])
        step = _step(heads, q.shape[1], k.shape[1], q.element_size()) * heads
        for i in range(0, len(q), step):
            part = slice(i, i + step)
            p = weights_of(q[part], k[part], i // heads)
            windows = slice(i // heads, (i + step) // heads)
            d_kv[windows, 1] = torch.bmm(p, d_out[part]).unflatten(0, (-1, heads))
            ds = torch.bmm(v[part], d_out[part].transpose(1, 2)).mul_(p)
            ds.addcmul_(p, ds.sum(1, keepdim=True), value=-1)
            if d_bias is not None:
                d_bias += ds.unflatten(0, (-1, heads)).sum(0)
            ds.mul_(scale)
            torch.bmm(ds.transpose(1, 2), k[part], out=dq[part])
            d_kv[windows, 0] = torch.bmm(ds, q[part]).unflatten(0, (-1, heads))
        d_q = _joined(dq, counts, window, heads).to(dtype)
        d_kv = _joined(d_kv.flatten(0, 2), counts, kv_window, 2 * heads).to(dtype)
        return d_q, d_kv, None if d_bias is None else d_bias.transpose(1, 2).to(bias.dtype), *(None,) * 6
