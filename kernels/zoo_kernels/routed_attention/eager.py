"""Routed attention in PyTorch ops: rows of whole regions gathered by index_select, then SDPA on strided views."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _rows(x: Tensor, indices: Tensor) -> Tensor:
    """Regions of ``x`` [B, S, N, h, d] named by ``indices`` [B, R, topk], each one row copy: [B*R, topk, N, h, d]."""
    B, S, N, h, d = x.shape
    first = torch.arange(B, device=x.device) * S  # [B] row of each sample's first region
    flat = (indices + first[:, None, None]).reshape(-1)
    return x.reshape(B * S, N * h * d).index_select(0, flat).view(B * indices.shape[1], indices.shape[2], N, h, d)


def forward(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, *, weights: Tensor | None = None, scale: float) -> Tensor:
    """See :func:`zoo_kernels.routed_attention.routed_attention`; [B, R, Nq, h, dv]."""
    kg, vg = _rows(k, indices), _rows(v, indices)  # [B*R, topk, Nk, h, d]
    if weights is not None:
        w = weights.to(q.dtype).flatten(0, 1)[..., None, None, None]
        kg, vg = kg * w, vg * w
    q_, k_, v_ = (x.transpose(1, 2) for x in (q.flatten(0, 1), kg.flatten(1, 2), vg.flatten(1, 2)))  # [B*R, h, N, d]
    out = F.scaled_dot_product_attention(q_, k_, v_, scale=scale)
    return out.transpose(1, 2).reshape(*q.shape[:-1], v.shape[-1])
