"""Window attention upsampling as its equations read: windows cut out with unfold, softmax of products, fold."""

from __future__ import annotations

import copy
import math
from types import MethodType

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.medical.wau import WindowAttentionUpsample


def cut(x: Tensor, window: tuple[int, ...]) -> Tensor:
    """``[B, C, *sizes]``, whose sizes the window divides -> ``[B, windows, tokens, C]``."""
    B, C = x.shape[:2]
    if len(window) == 2:
        columns = F.unfold(x, window, stride=window)  # [B, C * tokens, windows]
        return columns.view(B, C, math.prod(window), -1).permute(0, 3, 2, 1)
    for axis, size in enumerate(window, 2):
        x = x.unfold(axis, size, size)  # the window's own axis is put behind
    return x.flatten(5).flatten(2, 4).permute(0, 2, 3, 1)


def join(windows: Tensor, sizes: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`cut`."""
    B, n, tokens, C = windows.shape
    if len(window) == 2:
        return F.fold(windows.permute(0, 3, 2, 1).reshape(B, C * tokens, n), sizes, window, stride=window)
    counts = [s // w for s, w in zip(sizes, window)]
    x = windows.view(B, *counts, *window, C).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(B, C, *sizes)


def attend(layer: WindowAttentionUpsample, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention from ``q [B, C, *sizes]`` to ``k, v [B, C, *smaller sizes]`` in windows."""
    sizes, small = tuple(q.shape[2:]), tuple(k.shape[2:])
    counts = [-(-s // w) for s, w in zip(small, layer.kv_window)]
    fine = tuple(n * w for n, w in zip(counts, layer.window))
    coarse = tuple(n * w for n, w in zip(counts, layer.kv_window))
    real = F.pad(k.new_ones(1, 1, *small), _padding(small, coarse))
    q_win = cut(F.pad(q, _padding(sizes, fine)), layer.window)  # [B, n, T, C]
    k_win, v_win = (cut(F.pad(t, _padding(small, coarse)), layer.kv_window) for t in (k, v))  # [B, n, t, C]
    q_win, k_win, v_win = (t.unflatten(-1, (layer.num_heads, -1)).transpose(2, 3) for t in (q_win, k_win, v_win))
    logits = q_win @ k_win.transpose(-1, -2) * q_win.shape[-1] ** -0.5 + layer.bias()  # [B, n, h, T, t]
    logits = logits.masked_fill(cut(real, layer.kv_window)[:, :, None, None, :, 0] == 0, float("-inf"))
    out = (logits.softmax(-1) @ v_win).transpose(2, 3).flatten(3)  # [B, n, T, C]
    out = join(out, fine, layer.window)
    for axis, size in enumerate(sizes, 2):
        out = out.narrow(axis, 0, size)
    return out


def _padding(have: tuple[int, ...], want: tuple[int, ...]) -> list[int]:
    return [n for h, w in zip(reversed(have), reversed(want)) for n in (0, w - h)]


def forward(self: WindowAttentionUpsample, lateral: Tensor, coarse: Tensor) -> Tensor:
    """The block's forward, one equation after the other; every map stays channels first."""
    channels_first = lambda f, x: f(x.movedim(1, -1)).movedim(-1, 1)  # noqa: E731
    sizes = tuple(lateral.shape[2:])
    q = channels_first(self.q, channels_first(self.norm_q, lateral))
    k, v = channels_first(self.kv, channels_first(self.norm_kv, coarse)).chunk(2, 1)
    mode = "bilinear" if self.dims == 2 else "trilinear"
    y = F.interpolate(self.residual(coarse), size=sizes, mode=mode, align_corners=False)
    y = y + channels_first(self.proj, attend(self, q, k, v))
    return y if self.mlp is None else y + channels_first(self.mlp, y)


def with_unfold(layer: WindowAttentionUpsample) -> nn.Module:
    """A copy of the block, weights and all, that computes by unfold."""
    made = copy.deepcopy(layer)
    made.forward = MethodType(forward, made)  # type: ignore[method-assign]
    return made
