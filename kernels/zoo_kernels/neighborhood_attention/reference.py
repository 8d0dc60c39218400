"""Neighborhood attention and blocked local attention as plainly as they can be written."""

from __future__ import annotations

import torch

from zoo_kernels.neighborhood_attention.windows import axis_windows


def _axis_tables(
    length: int, kernel: int, dilation: int, stride: int, causal: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """Per position: its ``kernel`` key positions (-1 where a causal window is cut) and their relative offsets."""
    positions, offsets = [], []
    for group, rank, start, stop in axis_windows(length, kernel, dilation, stride, causal):
        ranks = list(range(start, stop)) + [-1] * (kernel - (stop - start))
        positions.append([-1 if r < 0 else group + r * dilation for r in ranks])
        offsets.append([0 if r < 0 else r - rank for r in ranks])
    return positions, offsets


def _picked(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``x[:, index]``, whose gradient is summed in the same order every time: indexing's is not, on several threads."""
    return x.index_select(1, index.flatten()).unflatten(1, index.shape)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
    stride: tuple[int, ...],
    causal: tuple[bool, ...],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Gather each query's neighbours, softmax over exactly those."""
    spatial = tuple(q.shape[1:-2])
    dims, device = len(spatial), q.device
    tokens = 1
    # index, bias index and validity of every (query, neighbour) pair, built up axis by axis to [*spatial, *kernel]
    index = torch.zeros((1,) * (2 * dims), dtype=torch.long, device=device)
    bias_index = torch.zeros_like(index)
    valid = torch.ones_like(index, dtype=torch.bool)
    for axis in range(dims):
        positions, offsets = _axis_tables(spatial[axis], kernel_size[axis], dilation[axis], stride[axis], causal[axis])
        shape = [1] * (2 * dims)
        shape[axis], shape[dims + axis] = spatial[axis], kernel_size[axis]
        pos = torch.tensor(positions, device=device).view(shape)
        off = torch.tensor(offsets, device=device).view(shape) + kernel_size[axis] - 1
        index = index * spatial[axis] + pos.clamp(min=0)
        bias_index = bias_index * (2 * kernel_size[axis] - 1) + off
        valid = valid & (pos >= 0)
        tokens *= spatial[axis]
    shape_NK = (tokens, valid.numel() // tokens)
    index, bias_index, valid = (t.reshape(shape_NK) for t in (index, bias_index, valid))

    q_BNhd, k_BNhd, v_BNhe = (t.flatten(1, dims) for t in (q, k, v))
    logits_BNhK = torch.einsum("bnhd,bnKhd->bnhK", q_BNhd * scale, _picked(k_BNhd, index))
    if bias is not None:
        logits_BNhK = logits_BNhK + _picked(bias.flatten(1), bias_index).transpose(0, 1)  # [h, N, K] -> [N, h, K]
    logits_BNhK = logits_BNhK.masked_fill(~valid[:, None], float("-inf"))
    out_BNhe = torch.einsum("bnhK,bnKhe->bnhe", logits_BNhK.softmax(-1), _picked(v_BNhe, index))
    return out_BNhe.reshape(*q.shape[:-1], v.shape[-1])


def halo(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    block_size: int,
    halo_size: int,
    rel_height: torch.Tensor | None,
    rel_width: torch.Tensor | None,
    scale: float,
    scale_position: bool,
) -> torch.Tensor:
    """Block by block: the queries of a block attend to the block and ``halo_size`` positions around it."""
    height, width = k.shape[1:3]
    ratio = height // q.shape[1]
    block_q, win = block_size // ratio, block_size + 2 * halo_size
    pad = (0, 0, 0, 0, halo_size, halo_size, halo_size, halo_size)
    k, v = torch.nn.functional.pad(k, pad), torch.nn.functional.pad(v, pad)
    rows = []
    # table row of key j seen from query x on one axis: j - x + win - 1
    rel = torch.arange(win, device=q.device) - torch.arange(block_q, device=q.device)[:, None] + win - 1
    for i in range(height // block_size):
        row = []
        for j in range(width // block_size):
            q_B = q[:, i * block_q : (i + 1) * block_q, j * block_q : (j + 1) * block_q]  # [B, y, x, h, d]
            at = slice(i * block_size, i * block_size + win), slice(j * block_size, j * block_size + win)
            k_B, v_B = k[:, at[0], at[1]], v[:, at[0], at[1]]  # [B, Y, X, h, d]
            logits = torch.einsum("byxhd,bYXhd->bhyxYX", q_B, k_B) * scale
            position = torch.zeros_like(logits)
            if rel_height is not None:
                position = position + torch.einsum("byxhd,yYd->bhyxY", q_B, rel_height[rel])[..., None]
            if rel_width is not None:
                position = position + torch.einsum("byxhd,xXd->bhyxX", q_B, rel_width[rel])[..., None, :]
            logits = logits + (position * scale if scale_position else position)
            weights = logits.flatten(-2).softmax(-1).view(logits.shape)
            row.append(torch.einsum("bhyxYX,bYXhe->byxhe", weights, v_B))
        rows.append(torch.cat(row, 2))
    return torch.cat(rows, 1)
