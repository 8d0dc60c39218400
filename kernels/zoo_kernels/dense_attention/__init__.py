"""Dense attention: every query with every key; softmax through PyTorch, other score functions of our own."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_kernels.dispatch import Operator

OPERATOR = Operator("dense_attention", ("reference", "eager", "triton"), autocast=True)

SCORES = ("softmax", "relu", "cog", "reversed")

__all__ = ["OPERATOR", "SCORES", "dense_attention"]


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    score: str = "softmax",
    backend: str = "auto",
) -> Tensor:
    """Attention of N queries to M keys: out = f(scale * q k^T + bias) v, with S = scale * q k^T + bias.

    ========== ==============================================================================================
    softmax    exp(S) normalised over the keys.
    relu       max(S, 0), not normalised: rectified linear attention (ReLA), whose RMS norm and gate act on the result.
    cog        sign(S) exp(abs(S)) / sum over keys of exp(abs(S)): signed weights (Cog attention).
    reversed   exp(S) normalised over the queries: the queries compete for each key.
    ========== ==============================================================================================

    Args:
        q: [B, h, N, d].
        k: [B, h, M, d].
        v: [B, h, M, dv].
        bias: floating, added to the scaled logits, or bool, True where a query may see a key; broadcastable to
            [B, h, N, M]. A hidden key (False or -inf) has weight 0 under every score; a query (under ``reversed`` a
            key) of which all pairs are hidden gives zeros.
        scale: of the logits; d ** -0.5 if None.
        score: "softmax", "relu", "cog" or "reversed".
        backend: "auto", "reference", "eager" or "triton". Under ``eager`` softmax is PyTorch's
            scaled_dot_product_attention, which chooses between its own kernels.

    Returns:
        [B, h, N, dv], the dtype of ``q``.

    Raises:
        ValueError: a shape, dtype or score that does not fit.
        BackendError: ``backend`` was named and cannot serve the call.

    Sources: Vaswani et al. (arXiv 1706.03762), eq. 1; ReLA: Zhang et al. (arXiv 2104.07012); Cog: Lv et al.
    (arXiv 2411.07176); normalisation over the queries: Locatello et al. (arXiv 2006.15055), section 2.1.
    """
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dim() != 4:
            raise ValueError(f"{name} has {t.dim()} dimensions, shape {tuple(t.shape)}: accepted is [B, heads, N, d]")
        if not t.is_floating_point():
            raise ValueError(f"{name} has dtype {t.dtype}: accepted is a floating dtype")
        if t.device != q.device:
            raise ValueError(f"{name} is on {t.device}: accepted is the device of q, {q.device}")
        if t.dtype != q.dtype and not OPERATOR.autocasts(q):
            raise ValueError(f"{name} has dtype {t.dtype}: accepted is the dtype of q, {q.dtype}, outside autocast")
    b, h, n, d = q.shape
    m = k.shape[2]
    if tuple(k.shape) != (b, h, m, d):
        raise ValueError(
            f"k has shape {tuple(k.shape)}: accepted is [{b}, {h}, M, {d}] for q of shape {tuple(q.shape)}"
        )
    if tuple(v.shape[:3]) != (b, h, m):
        raise ValueError(
            f"v has shape {tuple(v.shape)}: accepted is [{b}, {h}, {m}, dv] for k of shape {tuple(k.shape)}"
        )
    if m < 1 or n < 1 or d < 1:
        raise ValueError(f"q, k have shapes {tuple(q.shape)}, {tuple(k.shape)}: accepted is at least one query and key")
    if bias is not None:
        if bias.dim() > 4 or any(s not in (1, f) for s, f in zip(bias.shape[::-1], (m, n, h, b))):
            raise ValueError(f"bias has shape {tuple(bias.shape)}: accepted is what broadcasts to {(b, h, n, m)}")
        if bias.dtype != torch.bool and not bias.is_floating_point():
            raise ValueError(f"bias has dtype {bias.dtype}: accepted is bool or a floating dtype")
        if bias.device != q.device:
            raise ValueError(f"bias is on {bias.device}: accepted is the device of q, {q.device}")
        bias = bias[(None,) * (4 - bias.dim())]
    if scale is not None and not isinstance(scale, (int, float)):
        raise TypeError(f"scale={scale!r}: accepted is a number, or None for head_dim ** -0.5")
    if score not in SCORES:
        raise ValueError(f"score={score!r}: accepted are {', '.join(map(repr, SCORES))}")
    return OPERATOR(q, k, v, bias=bias, scale=scale, score=score, backend=backend)
