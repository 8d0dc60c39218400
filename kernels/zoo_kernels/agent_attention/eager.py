"""Agent attention in PyTorch ops: two scaled_dot_product_attention calls, each with its bias."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v for q [B, h, N, d], k [B, h, M, d], v [B, h, M, dv]."""
    if bias is not None:
        bias = bias.to(q.dtype).expand(*q.shape[:3], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agent: Tensor,
    *,
    agent_bias: Tensor | None = None,
    query_bias: Tensor | None = None,
    scale: float,
) -> Tensor:
    """See :func:`zoo_kernels.agent_attention.agent_attention`; [B, h, N, dv]."""
    agent_v = _attend(agent, k, v, agent_bias, scale)  # [B, h, n, dv]
    return _attend(q, agent, agent_v, query_bias, scale)
