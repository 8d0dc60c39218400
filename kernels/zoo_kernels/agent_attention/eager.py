"""Agent attention in PyTorch ops: scaled_dot_product_attention or baddbmm and softmax, chosen by shape and gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Up to this many agents baddbmm + softmax + bmm beats the fused CPU kernel, whose tiles are mostly empty then.
FEW_AGENTS = 32


def _fused(q: Tensor, agents: int, bias: Tensor | None) -> bool:
    """Whether one scaled_dot_product_attention call is the faster form of softmax(scale q k^T + bias) v."""
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        # No fused CPU kernel gives the gradient of a bias; the call would fall back to a slower composition.
        return q.device.type != "cpu" or q.dtype in (torch.float16, torch.bfloat16)
    return q.device.type != "cpu" or agents > FEW_AGENTS or q.dtype in (torch.float16, torch.bfloat16)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, agents: int) -> Tensor:
    """softmax(scale q k^T + bias) v for q [B, h, N, d], k [B, h, M, d], v [B, h, M, dv]."""
    B, h, N, d = q.shape
    M = k.shape[2]
    if bias is not None:
        bias = bias.to(q.dtype).expand(B, h, N, M)
    if _fused(q, agents, bias):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    q_, kt, v_ = q.reshape(B * h, N, d), k.reshape(B * h, M, d).transpose(1, 2), v.reshape(B * h, M, v.shape[3])
    if bias is None:
        logits = torch.baddbmm(q.new_zeros(1, 1, 1), q_, kt, beta=0, alpha=scale)
    else:
        logits = torch.baddbmm(bias.reshape(B * h, N, M), q_, kt, alpha=scale)
    return torch.bmm(logits.softmax(-1), v_).view(B, h, N, v.shape[3])


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
    n = agent.shape[2]
    agent_v = _attend(agent, k, v, agent_bias, scale, n)  # [B, h, n, dv]
    return _attend(q, agent, agent_v, query_bias, scale, n)
