"""Routed attention as the equations state it: gather whole regions, softmax, weighted sum. Any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def check_indices(indices: Tensor, num_regions: int) -> None:
    """Raise IndexError unless every entry of ``indices`` lies in 0 .. num_regions-1 (waits for the device)."""
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= num_regions):
        raise IndexError(
            f"indices range from {int(indices.min())} to {int(indices.max())}: accepted are 0 .. {num_regions - 1}"
        )


def gather_regions(x: Tensor, indices: Tensor, weights: Tensor | None) -> Tensor:
    """Regions of ``x`` [B, S, N, h, d] named by ``indices`` [B, R, topk], times their weights: [B, R, topk*N, h, d]."""
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None]
    gathered = x[batch, indices]  # [B, R, topk, N, h, d]
    if weights is not None:
        gathered = gathered * weights[..., None, None, None].to(x.dtype)
    return gathered.flatten(2, 3)


def attention_matrix(
    q: Tensor, k: Tensor, indices: Tensor, *, weights: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The attention probabilities [B*R, h, Nq, topk*Nk] of :func:`zoo_kernels.routed_attention.routed_attention`.

    Columns are the tokens of the routed regions in index order. Raises IndexError if an index names no region.
    """
    check_indices(indices, k.shape[1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    kg = gather_regions(k, indices, weights)  # [B, R, topk*Nk, h, dk]
    logits = torch.einsum("brqhd,brkhd->brhqk", q * scale, kg)
    return logits.softmax(-1).flatten(0, 1)


def forward(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, *, weights: Tensor | None = None, scale: float) -> Tensor:
    """See :func:`zoo_kernels.routed_attention.routed_attention`; [B, R, Nq, h, dv]."""
    B, R = q.shape[:2]
    attn = attention_matrix(q, k, indices, weights=weights, scale=scale).unflatten(0, (B, R))  # [B, R, h, Nq, topk*Nk]
    return torch.einsum("brhqk,brkhd->brqhd", attn, gather_regions(v, indices, weights))
