"""Agent attention as the equations state it. Any floating dtype."""

from __future__ import annotations

from torch import Tensor


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v for q [B, h, N, d], k [B, h, M, d], v [B, h, M, dv]."""
    logits = (q * scale) @ k.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return logits.softmax(-1) @ v


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
    agent_v = _softmax_attention(agent, k, v, agent_bias, scale)  # [B, h, n, dv]
    return _softmax_attention(q, agent, agent_v, query_bias, scale)
