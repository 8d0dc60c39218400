"""The equations of super tokens, neighbour by neighbour; any dtype, differentiable by autograd."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn import functional as F

#: The nine cells around a cell, in raster order, as (dy, dx).
NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


def forward(
    x: Tensor, cell: tuple[int, int], iterations: int, scale: float, eps: float, affinity_grad: bool
) -> tuple[Tensor, Tensor]:
    """x [B,H,W,C] -> tokens [B,hh,ww,C], affinity [B,hh,ww,9,ch*cw]."""
    pixels = _cells(x, cell)  # [B, hh, ww, P, C]
    tokens = pixels.mean(3)
    constant = contextlib.nullcontext if affinity_grad else torch.no_grad
    for i in range(iterations):
        with constant():
            logits = [(pixels * _shifted(tokens, dy, dx)[:, :, :, None]).sum(-1) for dy, dx in NEIGHBOURS]
            affinity = (torch.stack(logits, dim=3) * scale).softmax(dim=3)  # [B, hh, ww, 9, P]
        with contextlib.nullcontext() if affinity_grad or i == iterations - 1 else torch.no_grad():
            gathered, total = torch.zeros_like(tokens), torch.zeros_like(tokens[..., :1])
            for k, (dy, dx) in enumerate(NEIGHBOURS):
                share = affinity[:, :, :, k]  # [B, hh, ww, P], what each cell's pixels give to its neighbour at dy, dx
                gathered = gathered + _shifted((share[..., None] * pixels).sum(3), -dy, -dx)
                total = total + _shifted(share.sum(3, keepdim=True), -dy, -dx)
            tokens = gathered / (total + eps)
    return tokens, affinity


def back_project(tokens: Tensor, affinity: Tensor, cell: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """tokens [B,hh,ww,D], affinity [B,hh,ww,9,P] -> [B,H,W,D]."""
    b, hh, ww, d = tokens.shape
    ch, cw = cell
    y = tokens.new_zeros(b, hh, ww, ch * cw, d)
    for k, (dy, dx) in enumerate(NEIGHBOURS):
        y = y + affinity[:, :, :, k, :, None] * _shifted(tokens, dy, dx)[:, :, :, None]
    y = y.view(b, hh, ww, ch, cw, d).transpose(2, 3).reshape(b, hh * ch, ww * cw, d)
    return y[:, : size[0], : size[1]].to(tokens.dtype)


def _cells(x: Tensor, cell: tuple[int, int]) -> Tensor:
    """[B,H,W,C] -> [B,hh,ww,ch*cw,C], zeros where cells reach beyond the map."""
    b, h, w, c = x.shape
    ch, cw = cell
    x = F.pad(x, (0, 0, 0, -w % cw, 0, -h % ch))
    hh, ww = x.shape[1] // ch, x.shape[2] // cw
    return x.view(b, hh, ch, ww, cw, c).transpose(2, 3).reshape(b, hh, ww, ch * cw, c)


def _shifted(t: Tensor, dy: int, dx: int) -> Tensor:
    """For each cell what t [B,hh,ww,*] has at the neighbour (dy, dx); zeros beyond the grid."""
    hh, ww = t.shape[1:3]
    return F.pad(t, (0, 0, 1, 1, 1, 1))[:, 1 + dy : 1 + dy + hh, 1 + dx : 1 + dx + ww]
