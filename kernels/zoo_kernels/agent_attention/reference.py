"""Agent attention as the equations state it. Any floating dtype."""

from __future__ import annotations

from torch import Tensor


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) [B, h, N, M] for q [B, h, N, d], k [B, h, M, d]."""
    logits = (q * scale) @ k.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return logits.softmax(-1)


def attention_matrices(
    q: Tensor,
    k: Tensor,
    agent: Tensor,
    *,
    agent_bias: Tensor | None = None,
    query_bias: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Both attention maps of :func:`zoo_kernels.agent_attention.agent_attention`, whose product is the whole map.

    Returns agents over keys [B, h, n, M] and queries over agents [B, h, N, n].
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _probabilities(agent, k, agent_bias, scale), _probabilities(q, agent, query_bias, scale)


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
    from_keys, from_agents = attention_matrices(q, k, agent, agent_bias=agent_bias, query_bias=query_bias, scale=scale)
    return from_agents @ (from_keys @ v)
