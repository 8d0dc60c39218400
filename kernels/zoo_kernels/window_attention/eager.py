"""Window attention in PyTorch ops: scaled_dot_product_attention on windows, masks only where windows need one."""

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
    b, h, w, c = qkv.shape
    if b == 0:
        return qkv.new_zeros(b, h, w, c // 3)
    if bias is not None:
        bias = bias.to(qkv.dtype)
    x = _pad(qkv, window, pad_value)
    height, width = x.shape[1:3]
    sh, sw = shift
    mask = _mask(height, width, h, w, window, shift, pad_value is None, qkv.device)
    if sh or sw:
        x = x.roll((-sh, -sw), (1, 2))
    windows = _windows(x, window)  # [B * n, N, 3C]
    # [B * n, N, 3, heads, d] -> 3 x [B * n, heads, N, d], views
    query, key, value = windows.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    out = _attend(query, key, value, bias, mask, scale)
    out = _reverse(out, window, b, height, width)
    if sh or sw:
        out = out.roll((sh, sw), (1, 2))
    return out[:, :h, :w].contiguous() if (height, width) != (h, w) else out


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
    if bias is not None:
        bias = bias.to(q.dtype)
    mask = _cross_mask(kv, kv_window)
    x = _pad(q, window, None)
    key, value = (_partition(t, kv_window, num_heads) for t in _pad(kv, kv_window, None).chunk(2, dim=-1))
    out = _attend(_partition(x, window, num_heads), key, value, bias, mask, scale)
    return _reverse(out, window, b, x.shape[1], x.shape[2])[:, :h, :w]


def _pad(x: Tensor, window: tuple[int, int], pad_value: Tensor | None) -> Tensor:
    """Fill the map below and on the right up to whole windows, with ``pad_value`` or zeros."""
    b, h, w, c = x.shape
    below, right = -h % window[0], -w % window[1]
    if not (below or right):
        return x
    if pad_value is None:
        return F.pad(x, (0, 0, 0, right, 0, below))
    token = pad_value.to(x.dtype)
    if right:
        x = torch.cat([x, token.expand(b, h, right, c)], 2)
    if below:
        x = torch.cat([x, token.expand(b, below, w + right, c)], 1)
    return x


def _windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """[B, H, W, C] -> [B * n, N, C]; a view if a window spans whole rows of a contiguous map."""
    b, h, w, c = x.shape
    wh, ww = window
    return x.reshape(b, h // wh, wh, w // ww, ww, c).transpose(2, 3).reshape(-1, wh * ww, c)


def _partition(x: Tensor, window: tuple[int, int], heads: int) -> Tensor:
    """[B, H, W, C] -> [B * n, heads, N, d]."""
    return _windows(x, window).unflatten(-1, (heads, -1)).transpose(1, 2)


def _reverse(out: Tensor, window: tuple[int, int], b: int, h: int, w: int) -> Tensor:
    """[B * n, heads, N, d] -> [B, H, W, C]."""
    wh, ww = window
    out = out.transpose(1, 2).flatten(2)  # [B * n, N, C]
    return out.reshape(b, h // wh, w // ww, wh, ww, -1).transpose(2, 3).reshape(b, h, w, -1)


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
    """Allowed pairs [n, N, N] of the rolled, padded map, or None if every window allows all of them."""
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
    if hide:
        eye = torch.eye(wh * ww, dtype=torch.bool, device=device)
        allowed = (allowed & (label >= 0)[:, None, :]) | eye
    return allowed


def _cross_mask(kv: Tensor, window: tuple[int, int]) -> Tensor | None:
    """Keys [n, 1, Nk] that are inside the key map, or None if all are."""
    h, w = kv.shape[1:3]
    (wh, ww), n_h, n_w = window, -(-h // window[0]), -(-w // window[1])
    if (n_h * wh, n_w * ww) == (h, w):
        return None
    row = torch.arange(n_h * wh, device=kv.device) < h
    col = torch.arange(n_w * ww, device=kv.device) < w
    inside = row[:, None] & col[None, :]
    return inside.view(n_h, wh, n_w, ww).transpose(1, 2).reshape(-1, 1, wh * ww)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, scale: float | None) -> Tensor:
    """q [B * n, heads, Nq, d], k and v [B * n, heads, Nk, d], bias [heads, Nq, Nk], mask [n, Nq or 1, Nk]."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias[None], scale=scale)
    added = torch.zeros((), dtype=q.dtype, device=q.device) if bias is None else bias
    added = torch.where(mask[:, None], added, torch.full((), float("-inf"), dtype=q.dtype, device=q.device))
    images = q.shape[0] // mask.shape[0]
    if images > 1:
        added = added.repeat(images, 1, 1, 1)  # [B * n, heads or 1, Nq or 1, Nk]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added.expand(-1, -1, q.shape[2], -1), scale=scale)
