"""Window attention as the equation reads: pad, roll, cut, softmax(scale q k^T + bias + mask) v, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    windows, label = _cut(qkv, window, shift, pad_value)  # [B, n, N, 3C]
    same = label[:, :, None] == label[:, None, :]  # [n, N, N]
    # A padded token that is masked keeps itself as a key: its row stays finite and is dropped afterwards.
    allowed = (same & (label >= 0)[:, None, :]) | torch.eye(label.shape[1], dtype=torch.bool, device=qkv.device)
    query, k, v = windows.chunk(3, dim=-1)
    out = _attend(query, k, v, num_heads, bias, allowed, scale)
    return _join(out, qkv.shape[1:3], window, shift)


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
    windows, _ = _cut(q, window, (0, 0), None)  # [B, n, Nq, C]
    kv_windows, label = _cut(kv, kv_window, (0, 0), None)  # [B, n, Nk, 2C]
    k, v = kv_windows.chunk(2, dim=-1)
    out = _attend(windows, k, v, num_heads, bias, (label >= 0)[:, None, :], scale)
    return _join(out, q.shape[1:3], window, (0, 0))


def _cut(x: Tensor, window: tuple[int, int], shift: tuple[int, int], pad_value: Tensor | None) -> tuple[Tensor, Tensor]:
    """Windows [B, n, N, C] of the padded and rolled map, and each token's region [n, N]: -1 for a masked padded one.

    After the roll the rows from ``height - shift`` on come from the other side of the map, likewise the columns: these
    are the (up to four) regions that do not see each other.
    """
    b, h, w, c = x.shape
    (wh, ww), (sh, sw) = window, shift
    height, width = -(-h // wh) * wh, -(-w // ww) * ww
    row = torch.arange(height, device=x.device)
    col = torch.arange(width, device=x.device)
    inside = ((row < h)[:, None] & (col < w)[None, :])[None, :, :, None]  # [1, height, width, 1]
    x = F.pad(x, (0, 0, 0, width - w, 0, height - h))
    if pad_value is not None:
        x = torch.where(inside, x, pad_value.to(x.dtype))
    x = x.roll((-sh, -sw), (1, 2))
    label = (row >= height - sh)[:, None] * 2 + (col >= width - sw)[None, :] * 1  # [height, width]
    if pad_value is None:
        label = torch.where(inside[0, :, :, 0].roll((-sh, -sw), (0, 1)), label, -1)
    # [B, n_h, wh, n_w, ww, C] -> [B, n_h * n_w, wh * ww, C]
    n = (height // wh) * (width // ww)
    x = x.view(b, height // wh, wh, width // ww, ww, c).transpose(2, 3).reshape(b, n, wh * ww, c)
    label = label.view(height // wh, wh, width // ww, ww).transpose(1, 2).reshape(-1, wh * ww)
    return x, label


def _attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None, allowed: Tensor, scale: float | None
) -> Tensor:
    """q [B, n, Nq, C], k and v [B, n, Nk, C], allowed [n, Nq or 1, Nk] -> [B, n, Nq, C]."""
    q, k, v = (t.unflatten(-1, (heads, t.shape[-1] // heads)).transpose(2, 3) for t in (q, k, v))  # [B, n, heads, N, d]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = scale * (q @ k.transpose(-2, -1))
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    logits = logits.masked_fill(~allowed[:, None], float("-inf"))
    return (logits.softmax(-1) @ v).transpose(2, 3).flatten(3)


def _join(out: Tensor, size: torch.Size, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """[B, n, N, C] -> [B, H, W, C]: windows back in place, unrolled, padding cut off."""
    (h, w), (wh, ww) = size, window
    n_h, n_w = -(-h // wh), -(-w // ww)
    b, c = out.shape[0], out.shape[-1]
    out = out.view(b, n_h, n_w, wh, ww, c).transpose(2, 3).reshape(b, n_h * wh, n_w * ww, c)
    return out.roll(shift, (1, 2))[:, :h, :w]
