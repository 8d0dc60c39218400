"""Window attention in PyTorch ops: scaled_dot_product_attention on the windows.

On the CPU the groups of :mod:`grouping` are cut out, attended and put back one after the other; so the map is neither
rolled nor padded, and no mask is made for every window. The backward there is written out, in pieces that stay in the
cache: PyTorch's own keeps the whole matrix of weights where the bias needs a gradient. Elsewhere, and under
torch.compile and torch.export, the same is done by a few functional calls on the whole map.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.window_attention.cross_cpu import cross_windows
from zoo_kernels.window_attention.grouping import Span, gather, mask, padding_sum, scatter, spans

CHUNK_BYTES = 1 << 20  # of a group's qkv that is worked on at a time, for each thread
CHUNK_WINDOWS = 48  # windows times heads in a step of the backward, for each thread


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
    b, h, w, c = qkv.shape
    if b == 0:
        return qkv.new_zeros(b, h, w, c // 3)
    bias = None if bias is None else bias.to(qkv.dtype)
    pad = None if pad_value is None else pad_value.to(qkv.dtype)
    scale = (c // 3 // num_heads) ** -0.5 if scale is None else float(scale)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (qkv, bias, pad))
    if qkv.device.type != "cpu" or torch.compiler.is_compiling():
        return _joined(qkv, bias, pad, num_heads, window, shift, scale)
    if needs_grad:
        return _Windows.apply(qkv, bias, pad, num_heads, window, shift, scale)
    return _groups(qkv, bias, pad, num_heads, window, shift, scale)


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
    b, h, w, c = q.shape
    if b == 0:
        return q.new_zeros(b, h, w, c)
    scale = (c // num_heads) ** -0.5 if scale is None else scale
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        return cross_windows(q, kv, num_heads, window, kv_window, bias, float(scale))
    inside = _keys_inside(kv, kv_window)
    x = _pad(q, window, None)
    query = _heads(_partition(x, window), num_heads)
    key, value = (_heads(_partition(t, kv_window), num_heads) for t in _pad(kv, kv_window, None).chunk(2, dim=-1))
    added = None if bias is None else bias.to(q.dtype)[None]
    if inside is not None:
        base = q.new_zeros(()) if added is None else added
        added = torch.where(inside[:, None], base, float("-inf"))  # [n, heads or 1, Nq or 1, Nk]
        added = added.repeat(b, 1, 1, 1).expand(-1, -1, query.shape[2], -1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=scale)
    return _reverse(out.transpose(1, 2).flatten(2), window, b, x.shape[1], x.shape[2])[:, :h, :w]


def _partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """[B, h, w, C] -> [B * windows, N, C]; a view if a window spans whole rows of a contiguous map."""
    b, h, w, c = x.shape
    wh, ww = window
    if w == ww:
        return x.reshape(-1, wh * ww, c)
    return x.unflatten(2, (w // ww, ww)).unflatten(1, (h // wh, wh)).transpose(2, 3).reshape(-1, wh * ww, c)


def _reverse(out: Tensor, window: tuple[int, int], b: int, h: int, w: int) -> Tensor:
    """[B * windows, N, C] -> [B, h, w, C]."""
    wh, ww = window
    return out.reshape(b, h // wh, w // ww, wh, ww, -1).transpose(2, 3).reshape(b, h, w, -1)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[n, N, C] -> [n, heads, N, d], a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _qkv_heads(windows: Tensor, heads: int) -> tuple[Tensor, ...]:
    """[n, N, 3C] -> 3 x [n, heads, N, d], views."""
    return windows.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _added(bias: Tensor | None, allowed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the logits, [1 or n, heads or 1, N, N], or None. ``allowed`` is [N, N] or [n, 1, N, N]."""
    if allowed is None:
        return None if bias is None else bias[None]
    base = torch.zeros((), dtype=dtype, device=allowed.device) if bias is None else bias
    hidden = torch.full((), float("-inf"), dtype=dtype, device=allowed.device)
    return torch.where(allowed, base, hidden)[(None,) * (4 - max(allowed.dim(), base.dim()))]


def _plan(qkv: Tensor, hide: bool, window: tuple[int, int], shift: tuple[int, int]) -> list[tuple[slice, Span, Span]]:
    """The groups of windows as (images, rows, columns), cut into pieces that stay in the cache."""
    b, h, w, c = qkv.shape
    rows, cols = spans(h, window[0], shift[0], hide), spans(w, window[1], shift[1], hide)
    room = max(1, CHUNK_BYTES * torch.get_num_threads() // (window[0] * window[1] * c * qkv.element_size()))  # windows
    found = []
    for k in cols:
        for r in (part for span in rows for part in span.split(max(1, room // k.windows), window[0])):
            step = max(1, room // (k.windows * r.windows))
            found += [(slice(i, min(i + step, b)), r, k) for i in range(0, b, step)]
    return found


def _groups(
    qkv: Tensor,
    bias: Tensor | None,
    pad: Tensor | None,
    heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    scale: float,
    lse: list[Tensor] | None = None,
) -> Tensor:
    """The forward, group by group; with ``lse`` (CPU) the log-sum-exp [n, heads, N] of each group is appended to it."""
    b, h, w, c = qkv.shape
    if window == (h, w) and shift == (0, 0):
        out, group_lse = _attend(qkv.reshape(b, h * w, c), _added(bias, None, qkv.dtype), heads, scale, lse is not None)
        if lse is not None:
            lse.append(group_lse)
        return out.reshape(b, h, w, -1)
    out = qkv.new_empty(b, h, w, c // 3)
    for images, rows, cols in _plan(qkv, pad is None, window, shift):
        added = _added(bias, mask(rows, cols, window, qkv.device), qkv.dtype)
        block = gather(qkv[images], rows, cols, pad)
        result, group_lse = _attend(_partition(block, window), added, heads, scale, lse is not None)
        if lse is not None:
            lse.append(group_lse)
        scatter(out[images], _reverse(result, window, *block.shape[:3]), rows, cols)
    return out


def _attend(windows: Tensor, added: Tensor | None, heads: int, scale: float, with_lse: bool) -> tuple[Tensor, Tensor]:
    """Packed windows [n, N, 3C] -> [n, N, C] and, on request, the log-sum-exp [n, heads, N] of the logits."""
    q, k, v = _qkv_heads(windows, heads)
    if not with_lse:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
        return out.transpose(1, 2).flatten(2), out
    if added is not None:
        added = added.expand(q.shape[0], heads, -1, -1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=added, scale=scale
    )
    return out.transpose(1, 2).flatten(2), lse


def _joined(
    qkv: Tensor,
    bias: Tensor | None,
    pad: Tensor | None,
    heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    scale: float,
) -> Tensor:
    """The forward by functional calls on the whole map, rolled, masked and rolled back."""
    b, h, w, _ = qkv.shape
    x = _pad(qkv, window, pad)
    height, width = x.shape[1:3]
    allowed = _mask(height, width, h, w, window, shift, pad is None, qkv.device)
    if any(shift):
        x = x.roll((-shift[0], -shift[1]), (1, 2))
    q, k, v = _qkv_heads(_partition(x, window), heads)
    added = _added(bias, None if allowed is None else allowed[:, None], qkv.dtype)
    if allowed is not None and added is not None:
        added = added.repeat(b, 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
    out = _reverse(out.transpose(1, 2).flatten(2), window, b, height, width)
    if any(shift):
        out = out.roll(shift, (1, 2))
    return out[:, :h, :w]


def _pad(x: Tensor, window: tuple[int, int], pad: Tensor | None) -> Tensor:
    """Fill the map below and on the right up to whole windows, with ``pad`` or zeros."""
    b, h, w, c = x.shape
    below, right = -h % window[0], -w % window[1]
    if not (below or right):
        return x
    if pad is None:
        return F.pad(x, (0, 0, 0, right, 0, below))
    x = torch.cat([x, pad.expand(b, h, right, c)], 2) if right else x
    return torch.cat([x, pad.expand(b, below, w + right, c)], 1) if below else x


def _mask(
    height: int,
    width: int,
    h: int,
    w: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    hide: bool,
    device: torch.device,
) -> Tensor | None:
    """Allowed pairs [n, N, N] of the rolled map of height x width, of which h x w are real, or None if all are."""
    (wh, ww), (sh, sw) = window, shift
    hide = hide and (height, width) != (h, w)
    if not (sh or sw or hide):
        return None
    row, col = torch.arange(height, device=device), torch.arange(width, device=device)
    label = (row >= height - sh)[:, None] * 2 + (col >= width - sw)[None, :] * 1  # [height, width]
    if hide:
        inside = ((row + sh) % height < h)[:, None] & ((col + sw) % width < w)[None, :]
        label = torch.where(inside, label, -1)
    label = label.view(height // wh, wh, width // ww, ww).transpose(1, 2).reshape(-1, wh * ww)  # [n, N]
    allowed = label[:, :, None] == label[:, None, :]
    if not hide:
        return allowed
    # A hidden token keeps itself as a key: its row stays finite and is dropped afterwards.
    return (allowed & (label >= 0)[:, None, :]) | torch.eye(wh * ww, dtype=torch.bool, device=device)


def _keys_inside(kv: Tensor, window: tuple[int, int]) -> Tensor | None:
    """Keys [n, 1, Nk] that are inside the key map, or None if all are."""
    h, w = kv.shape[1:3]
    (wh, ww), n_h, n_w = window, -(-h // window[0]), -(-w // window[1])
    if (n_h * wh, n_w * ww) == (h, w):
        return None
    row = torch.arange(n_h * wh, device=kv.device) < h
    col = torch.arange(n_w * ww, device=kv.device) < w
    inside = row[:, None] & col[None, :]
    return inside.view(n_h, wh, n_w, ww).transpose(1, 2).reshape(-1, 1, wh * ww)


class _Windows(torch.autograd.Function):
    """The groups' forward with a backward that recomputes the weights, a few windows at a time (CPU)."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        bias: Tensor | None,
        pad: Tensor | None,
        heads: int,
        window: tuple[int, int],
        shift: tuple[int, int],
        scale: float,
    ) -> Tensor:
        lse: list[Tensor] = []
        out = _groups(qkv, bias, pad, heads, window, shift, scale, lse)
        ctx.save_for_backward(qkv, bias, pad, out, *lse)
        ctx.how = heads, window, shift, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, bias, pad, out, *lse = ctx.saved_tensors
        heads, window, shift, scale = ctx.how
        b, h, w, c = qkv.shape
        wide = torch.float32 if qkv.dtype in (torch.float16, torch.bfloat16) else qkv.dtype
        d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        d_bias = None if bias is None else torch.zeros(bias.shape, dtype=wide)
        d_pad = None if pad is None else torch.zeros(pad.shape, dtype=wide)
        delta = (grad * out).unflatten(-1, (heads, -1)).sum(-1, dtype=wide)  # [B, H, W, heads]
        if window == (h, w) and shift == (0, 0):
            whole = (Span(1, ((0, h),), None), Span(1, ((0, w),), None))
            plan = [(slice(0, b), *whole)]
        else:
            plan = _plan(qkv, pad is None, window, shift)
        for (images, rows, cols), group_lse in zip(plan, lse, strict=True):
            added = _added(None if bias is None else bias.to(wide), mask(rows, cols, window, qkv.device), wide)
            blocks = [
                gather(qkv[images], rows, cols, pad),
                gather(grad[images], rows, cols, None),
                gather(delta[images], rows, cols, None),
            ]
            size = blocks[0].shape[:3]
            windows, d_out, sums = (_partition(x, window) for x in blocks)
            d_windows = torch.empty(windows.shape, dtype=wide)
            _backward(windows, d_out, sums, group_lse, added, heads, scale, d_windows, d_bias)
            d_block = _reverse(d_windows, window, *size)
            scatter(d_qkv[images], d_block, rows, cols)
            if d_pad is not None:
                d_pad += padding_sum(d_block, rows, cols)
        return (
            d_qkv,
            None if d_bias is None else d_bias.to(bias.dtype),
            None if d_pad is None else d_pad.to(pad.dtype),
            *(None,) * 4,
        )


def _backward(
    windows: Tensor,
    d_out: Tensor,
    sums: Tensor,
    lse: Tensor,
    added: Tensor | None,
    heads: int,
    scale: float,
    d_windows: Tensor,
    d_bias: Tensor | None,
) -> None:
    """Fill the gradient [n, N, 3C] of packed windows and add to that of the bias.

    With P the weights and D the gradient of the output: dV = P^T D, dS = P (D V^T - rowsum(D out)), dQ = scale dS K,
    dK = scale dS^T Q, dbias = sum of dS over the windows.
    """
    wide = d_windows.dtype
    n, tokens, _ = windows.shape
    step = max(1, CHUNK_WINDOWS * torch.get_num_threads() // heads)
    for i in range(0, n, step):
        part = slice(i, min(i + step, n))
        count = part.stop - i
        q, k, v = (t.to(wide).reshape(count * heads, tokens, -1) for t in _qkv_heads(windows[part], heads))
        d = _heads(d_out[part], heads).to(wide).reshape(count * heads, tokens, -1)
        p = torch.bmm(q, k.transpose(1, 2)).mul_(scale).view(count, heads, tokens, tokens)
        if added is not None:
            p.add_(added)
        p.sub_(lse[part, :, :, None]).exp_()
        ds = torch.bmm(d, v.transpose(1, 2)).view(count, heads, tokens, tokens)
        ds.sub_(sums[part].transpose(1, 2)[..., None]).mul_(p)
        if d_bias is not None:
            d_bias += ds.sum(0)
        ds = ds.view(count * heads, tokens, tokens).mul_(scale)
        targets = _qkv_heads(d_windows[part], heads)
        products = (torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q), torch.bmm(p.view_as(ds).transpose(1, 2), d))
        for target, product in zip(targets, products):
            target.copy_(product.view(target.shape))
