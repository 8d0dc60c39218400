"""Super tokens by batched products over cells, pixels last.

A cell's pixels are one matrix [P, C] and its nine tokens another [9, C]; affinities are kept as [9, P], so that the
softmax runs along a contiguous plane and every product has a long side. Unfold and fold of the token grid are shifts of
whole rows, first along x and then along y (3 + 3 instead of 9).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Numbers of the map that are worked on at a time without gradients.
_STEP = 1 << 17


def forward(
    x: Tensor, cell: tuple[int, int], iterations: int, scale: float, eps: float, affinity_grad: bool
) -> tuple[Tensor, Tensor]:
    """x [B,H,W,C] -> tokens [B,hh,ww,C], affinity [B,hh,ww,9,ch*cw]."""
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _by_strips(x, cell, iterations, scale, eps)
    pixels = _cells(x, cell)  # [B, hh, ww, P, C]
    tokens = _means(x, cell)
    if affinity_grad or not torch.is_grad_enabled() or not x.requires_grad:
        for _ in range(iterations):
            affinity = _associate(pixels, tokens, scale)
            tokens = _update(pixels, affinity, eps)
        return tokens, affinity
    with torch.no_grad():
        for _ in range(iterations - 1):
            tokens = _update(pixels, _associate(pixels, tokens, scale), eps)
        affinity = _associate(pixels, tokens, scale)
    return _update(pixels, affinity, eps), affinity


def _by_strips(x: Tensor, cell: tuple[int, int], iterations: int, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    """As :func:`forward` without gradients: rows of cells are laid out where they are used, and stay in the cache."""
    ch, cw = cell
    x = _padded(x, cell)
    b, hh, ww, c = x.shape[0], x.shape[1] // ch, x.shape[2] // cw, x.shape[3]
    rows_of = x.reshape(b * hh, ch, ww, cw, c)
    steps = _steps(b * hh, ww * ch * cw * c)

    def pixels(rows: slice) -> Tensor:
        return rows_of[rows].transpose(1, 2).reshape(-1, ww, ch * cw, c)

    # One step: the copy serves all passes.
    whole = pixels(steps[0]) if len(steps) == 1 else None
    tokens = _means(x, cell)
    affinity = x.new_empty(b * hh, ww, 9, ch * cw)
    for _ in range(iterations):
        near = _unfold(tokens * scale).reshape(b * hh, ww, 9, c)
        parts = []
        for rows in steps:
            cells = pixels(rows) if whole is None else whole
            affinity[rows] = a = torch.matmul(near[rows], cells.transpose(2, 3)).softmax(2)  # [rows, ww, 9, P]
            parts.append(torch.matmul(a, cells))
        gathered = torch.cat(parts) if len(parts) > 1 else parts[0]
        tokens = _divided(gathered.reshape(b, hh, ww, 9, c), affinity.reshape(b, hh, ww, 9, ch * cw), eps)
    return tokens, affinity.reshape(b, hh, ww, 9, ch * cw)


def _steps(rows: int, numbers: int) -> list[slice]:
    """Rows of cells in steps that stay in cache; in one step where gradients are recorded or a graph is made."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or rows * numbers <= 2 * _STEP:
        return [slice(0, rows)]
    step = max(1, _STEP // numbers)
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def back_project(tokens: Tensor, affinity: Tensor, cell: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """tokens [B,hh,ww,D], affinity [B,hh,ww,9,P] -> [B,H,W,D]."""
    b, hh, ww, d = tokens.shape
    ch, cw = cell
    near = _unfold(tokens).reshape(b * hh, ww, 9, d)
    shares = affinity.to(tokens.dtype).reshape(b * hh, ww, 9, ch * cw)
    steps = _steps(b * hh, ww * ch * cw * d)

    def pixels(rows: slice) -> Tensor:
        y = torch.matmul(shares[rows].transpose(2, 3), near[rows])  # [rows, ww, P, D]
        return y.reshape(-1, ww, ch, cw, d).transpose(1, 2)

    if len(steps) == 1:
        y = pixels(steps[0])
    else:
        y = tokens.new_empty(b * hh, ch, ww, cw, d)
        for rows in steps:
            y[rows] = pixels(rows)
    return y.reshape(b, hh * ch, ww * cw, d)[:, : size[0], : size[1]].contiguous()


def _associate(pixels: Tensor, tokens: Tensor, scale: float) -> Tensor:
    """Affinity [B,hh,ww,9,P] of pixels [B,hh,ww,P,C] to the nine tokens around them."""
    b, hh, ww, p, c = pixels.shape
    near = _unfold(tokens * scale).reshape(b * hh * ww, 9, c)
    logits = torch.bmm(near, pixels.reshape(b * hh * ww, p, c).transpose(1, 2))  # [cells, 9, P]
    return logits.softmax(1).reshape(b, hh, ww, 9, p)


def _update(pixels: Tensor, affinity: Tensor, eps: float) -> Tensor:
    """Tokens [B,hh,ww,C]: means of the pixels weighted by affinity."""
    b, hh, ww, p, c = pixels.shape
    gathered = torch.bmm(affinity.reshape(b * hh * ww, 9, p), pixels.reshape(b * hh * ww, p, c))
    return _divided(gathered.reshape(b, hh, ww, 9, c), affinity, eps)


def _divided(gathered: Tensor, affinity: Tensor, eps: float) -> Tensor:
    """Tokens [B,hh,ww,C] of what the cells give to them."""
    total = _fold(affinity.sum(-1, keepdim=True, dtype=_wide(affinity.dtype)))
    return (_fold(gathered) / (total + eps)).to(gathered.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _cells(x: Tensor, cell: tuple[int, int]) -> Tensor:
    """[B,H,W,C] -> [B,hh,ww,ch*cw,C], zeros where cells reach beyond the map."""
    ch, cw = cell
    x = _padded(x, cell)
    b, hh, ww, c = x.shape[0], x.shape[1] // ch, x.shape[2] // cw, x.shape[3]
    return x.reshape(b, hh, ch, ww, cw, c).transpose(2, 3).reshape(b, hh, ww, ch * cw, c)


def _padded(x: Tensor, cell: tuple[int, int]) -> Tensor:
    """[B,H,W,C] with zeros at the bottom and right, to whole cells."""
    h, w = x.shape[1:3]
    return F.pad(x, (0, 0, 0, -w % cell[1], 0, -h % cell[0])) if h % cell[0] or w % cell[1] else x


def _means(x: Tensor, cell: tuple[int, int]) -> Tensor:
    """Mean over each cell, zeros beyond the map included: [B,H,W,C] -> [B,hh,ww,C]."""
    # Pooling channels-last is ten times as fast as a mean over two axes.
    return F.avg_pool2d(_padded(x, cell).permute(0, 3, 1, 2), cell).permute(0, 2, 3, 1)


def _unfold(tokens: Tensor) -> Tensor:
    """The nine tokens around each cell, zeros beyond the grid: [B,hh,ww,C] -> [B,hh,ww,9,C]."""
    b, hh, ww, c = tokens.shape
    padded = F.pad(tokens, (0, 0, 1, 1, 1, 1))
    along_x = torch.stack([padded[:, :, dx : dx + ww] for dx in range(3)], dim=3)  # [B, hh+2, ww, 3, C]
    return torch.stack([along_x[:, dy : dy + hh] for dy in range(3)], dim=3).reshape(b, hh, ww, 9, c)


def _fold(shares: Tensor) -> Tensor:
    """Transpose of unfold, what each token is given by the nine cells around it: [B,hh,ww,9,C] -> [B,hh,ww,C]."""
    b, hh, ww, _, c = shares.shape
    shares = F.pad(shares.to(_wide(shares.dtype)).reshape(b, hh, ww, 3, 3, c), (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
    along_y = shares[:, 2:, :, 0] + shares[:, 1:-1, :, 1] + shares[:, :-2, :, 2]  # [B, hh, ww+2, 3, C]
    return along_y[:, :, 2:, 0] + along_y[:, :, 1:-1, 1] + along_y[:, :, :-2, 2]
