"""Bi-level routed attention: tokens of a region attend the tokens of the regions it is routed to.

BiFormer: Vision Transformer with Bi-Level Routing Attention (CVPR 2023, arXiv 2303.08810, eq. 3-8).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_kernels.dispatch import Operator
from zoo_kernels.routed_attention.reference import attention_matrix, check_indices

__all__ = ["OPERATOR", "attention_matrix", "check_indices", "route_regions", "routed_attention"]

OPERATOR = Operator("routed_attention", ("reference", "eager", "triton"), autocast=True)


def route_regions(q_region: Tensor, k_region: Tensor, topk: int, *, scale: float) -> tuple[Tensor, Tensor]:
    """Choose for each query region the ``topk`` key regions of largest affinity ``scale * q . k``.

    Args:
        q_region: [B, R, C] one descriptor a query region (BiFormer: the mean of its projected queries).
        k_region: [B, S, C] one descriptor a key region.
        topk: how many regions a region is routed to, 1 .. S.
        scale: factor of the affinities.

    Returns:
        indices [B, R, topk] int64, best first, and their logits [B, R, topk] in the dtype of the inputs;
        ``softmax(logits)`` are BiFormer's routing weights. The logits carry gradient, the indices do not.

    Raises:
        ValueError: wrong rank, batch or width that differ, ``topk`` outside 1 .. S.

    Source: eq. 4 (affinity graph) and eq. 5 (row-wise top-k).
    """
    for name, t in (("q_region", q_region), ("k_region", k_region)):
        if t.dim() != 3:
            raise ValueError(f"{name} has shape {tuple(t.shape)}: three dimensions [B, regions, C] are needed")
    if q_region.shape[0] != k_region.shape[0] or q_region.shape[2] != k_region.shape[2]:
        raise ValueError(
            f"q_region {tuple(q_region.shape)} and k_region {tuple(k_region.shape)}: batch and width must be equal"
        )
    if not 1 <= topk <= k_region.shape[1]:
        raise ValueError(f"topk={topk}: must lie in 1 .. {k_region.shape[1]}, the number of key regions")
    affinity = (q_region * scale) @ k_region.transpose(1, 2)  # [B, R, S]
    logits, indices = affinity.topk(topk, dim=-1)
    return indices, logits


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    *,
    weights: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention of every region's queries over the keys of its routed regions.

    Args:
        q: [B, R, Nq, h, dk] queries by region. Every region holds the same number of tokens; callers pad.
        k: [B, S, Nk, h, dk] keys by region (S = R unless keys come from another partition).
        v: [B, S, Nk, h, dv] values by region.
        indices: [B, R, topk] int64, each in 0 .. S-1; keys of the routed regions are concatenated in this order, and
            a region named twice counts twice. Values are not checked here (that would wait for the device); see
            :func:`check_indices`.
        weights: [B, R, topk] or None; multiplies the gathered keys and the gathered values (BiFormer's soft routing),
            and so carries gradient to the router.
        scale: factor of the logits, by default dk ** -0.5.
        backend: "auto", "reference", "eager" or "triton".

    Returns:
        [B, R, Nq, h, dv] in the dtype of q.

    Raises:
        ValueError: wrong rank, sizes that disagree, more than S routed regions, no region at all.
        TypeError: dtypes that differ, indices that are no integers.
        BackendError: a backend asked for by name that cannot serve the call.

    Source: eq. 6-7 (gather and attend); the local enhancement term of eq. 8 belongs to the caller.
    """
    _check(q, k, v, indices, weights)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    return OPERATOR(q, k, v, indices, weights=weights, scale=float(scale), backend=backend)


def _check(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, weights: Tensor | None) -> None:
    """Shapes and dtypes only: nothing here waits for the device."""
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dim() != 5:
            raise ValueError(f"{name} has shape {tuple(t.shape)}: five dimensions [B, regions, tokens, heads, d]")
        if not t.is_floating_point():
            raise TypeError(f"{name} has dtype {t.dtype}: a floating dtype is needed")
        if t.dtype != q.dtype and not OPERATOR.autocasts(q):
            raise TypeError(f"{name} has dtype {t.dtype} but q has {q.dtype}: they must be equal")
        if t.device != q.device:
            raise ValueError(f"{name} is on {t.device} but q is on {q.device}")
    if k.shape[0] != q.shape[0] or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: batch must agree, and regions and tokens of "
            "k and v must be equal"
        )
    if not q.shape[3] == k.shape[3] == v.shape[3]:
        raise ValueError(f"heads (dimension 3) differ: q has {q.shape[3]}, k has {k.shape[3]}, v has {v.shape[3]}")
    if q.shape[4] != k.shape[4]:
        raise ValueError(f"head_dim (dimension 4) of q is {q.shape[4]} and of k {k.shape[4]}: they must be equal")
    if indices.dim() != 3 or indices.shape[:2] != q.shape[:2]:
        raise ValueError(f"indices has shape {tuple(indices.shape)}: [{q.shape[0]}, {q.shape[1]}, topk] is needed")
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"indices has dtype {indices.dtype}: int64 or int32 is needed")
    if not 1 <= indices.shape[2] <= k.shape[1]:
        raise ValueError(
            f"indices has topk={indices.shape[2]}: 1 .. {k.shape[1]}, the number of key regions, is accepted"
        )
    if k.shape[2] == 0:
        raise ValueError("k has regions of 0 tokens: attention over no key is not defined")
    if weights is not None and weights.shape != indices.shape:
        raise ValueError(f"weights has shape {tuple(weights.shape)}: {tuple(indices.shape)}, as indices, is needed")
