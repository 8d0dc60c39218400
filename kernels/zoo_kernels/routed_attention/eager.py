"""Routed attention in PyTorch ops, in the form that is fastest for the shape.

* rows: whole regions copied as rows by index_select, then one SDPA on strided views of them;
* dense: regions of a few tokens with a large share of them routed: SDPA over all keys with a mask of routed regions;
* chunks: without gradient on a CPU, rows in pieces that stay in the cache.

Backward is autograd's: index_add of whole rows, sequential and so deterministic on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Bytes of gathered keys and values of one chunk: a share of an L3 cache (smaller chunks cost more copies than misses).
CHUNK_BYTES = 4 << 20
#: Largest mask of the dense form, elements a sample.
DENSE_LIMIT = 1 << 22
#: Up to this many queries a region, batched products on head-major rows beat SDPA's fixed cost a region and head.
FEW_QUERIES = 12


def _flat(indices: Tensor, regions: int) -> Tensor:
    """Routed regions as rows of [B*S, ...]: [B*R, topk] from indices [B, R, topk]."""
    first = torch.arange(indices.shape[0], device=indices.device) * regions
    return (indices + first[:, None, None]).flatten(0, 1)


def _rows(q: Tensor, k: Tensor, v: Tensor, flat: Tensor, weights: Tensor | None, scale: float) -> Tensor:
    """q [P, Nq, h, dk] of P query regions, k, v [B*S, Nk, h, d], flat and weights [P, topk]: [P, Nq, h, dv]."""
    gathered = []
    for x in (k, v):
        rows = x.index_select(0, flat.reshape(-1)).unflatten(0, flat.shape)  # [P, topk, Nk, h, d]
        if weights is not None:
            rows = rows * weights[:, :, None, None, None]
        gathered.append(rows.flatten(1, 2).transpose(1, 2))  # [P, h, topk*Nk, d]
    return F.scaled_dot_product_attention(q.transpose(1, 2), gathered[0], gathered[1], scale=scale).transpose(1, 2)


def _head_major(x: Tensor) -> Tensor:
    """[P, N, h, d] -> contiguous [P*h, N, d]."""
    P, N, h, d = x.shape
    return x.transpose(1, 2).reshape(P * h, N, d)


def _products(q: Tensor, k: Tensor, v: Tensor, flat: Tensor, weights: Tensor | None, scale: float) -> Tensor:
    """As :func:`_rows` for q, k, v already head-major [P*h, Nq, dk], [B*S*h, Nk, d] and flat, weights [P*h, topk]."""
    rows = []
    for x in (k, v):
        picked = x.index_select(0, flat.reshape(-1)).unflatten(0, flat.shape)  # [P*h, topk, Nk, d]
        if weights is not None:
            picked = picked * weights[:, :, None, None]
        rows.append(picked.flatten(1, 2))
    logits = torch.baddbmm(q.new_zeros(1, 1, 1), q, rows[0].transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(logits.softmax(-1), rows[1])  # [P*h, Nq, dv]


def _dense(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float) -> Tensor:
    """All keys at once; logits of a region routed to c times are raised by log(c), so that a repeat counts as such."""
    B, R, Nq, h, dk = q.shape
    S, Nk = k.shape[1:3]
    ones = torch.ones((), dtype=q.dtype, device=q.device).expand(indices.shape)
    log_count = q.new_zeros(B, R, S).scatter_add(2, indices.long(), ones).log()
    mask = log_count[:, :, None, :, None].expand(B, R, Nq, S, Nk).reshape(B, 1, R * Nq, S * Nk)
    q_, k_, v_ = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))  # [B, h, regions*N, d]
    out = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=mask.expand(B, h, R * Nq, S * Nk), scale=scale)
    return out.transpose(1, 2).unflatten(1, (R, Nq))


def _dense_is_cheaper(q: Tensor, k: Tensor, topk: int, training: bool) -> bool:
    """Dense work grows with S/topk, but its products are large; measured break-even on one CPU thread.

    With gradient the gathered form also scatters its rows back, so dense pays from a smaller share on.
    """
    R, Nq, S, Nk = q.shape[1], q.shape[2], k.shape[1], k.shape[2]
    share = Nq / (Nq + (25 if training else 6))
    return R * Nq * S * Nk <= DENSE_LIMIT and topk >= share * S


def _chunks(q: Tensor, k: Tensor, v: Tensor, flat: Tensor, weights: Tensor | None, scale: float) -> Tensor:
    """As :func:`_rows`, in pieces whose gathered rows stay in the cache. Not for autograd."""
    P, Nq, h = q.shape[:3]
    row_bytes = flat.shape[1] * (k[:1].numel() + v[:1].numel()) * q.element_size()
    step = max(1, CHUNK_BYTES // max(1, row_bytes))  # query regions a chunk
    few = Nq <= FEW_QUERIES and q.dtype in (torch.float32, torch.float64)
    if few:
        # Rows of one head: row r of a region becomes rows r*h .. r*h+h-1.
        heads = torch.arange(h, device=q.device)
        flat = (flat[:, None, :] * h + heads[:, None]).flatten(0, 1)
        weights = None if weights is None else weights.repeat_interleave(h, 0)
        q, k, v, step = _head_major(q), _head_major(k), _head_major(v), step * h
    if step >= q.shape[0]:
        out = (_products if few else _rows)(q, k, v, flat, weights, scale)
    else:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        for i in range(0, q.shape[0], step):
            piece = slice(i, i + step)
            w = None if weights is None else weights[piece]
            out[piece] = (_products if few else _rows)(q[piece], k, v, flat[piece], w, scale)
    return out.view(P, h, Nq, -1).transpose(1, 2) if few else out


def forward(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, *, weights: Tensor | None = None, scale: float) -> Tensor:
    """See :func:`zoo_kernels.routed_attention.routed_attention`; [B, R, Nq, h, dv]."""
    if q.numel() == 0 or v.numel() == 0:
        return (q.sum() + k.sum() + v.sum()) * v.new_zeros(*q.shape[:-1], v.shape[-1])
    B, R = q.shape[:2]
    inputs = [t for t in (q, k, v, weights) if t is not None]
    training = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    if weights is None and q.device.type == "cpu" and _dense_is_cheaper(q, k, indices.shape[2], training):
        return _dense(q, k, v, indices, scale)
    flat = _flat(indices, k.shape[1])
    w = None if weights is None else weights.to(q.dtype).flatten(0, 1)
    plain = training or q.device.type != "cpu" or torch.compiler.is_compiling()
    out = (_rows if plain else _chunks)(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), flat, w, scale)
    return out.reshape(B, R, *out.shape[1:])
