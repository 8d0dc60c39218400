"""Agent attention in PyTorch ops: scaled_dot_product_attention or baddbmm and softmax, chosen by shape and gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Up to this many agents batched products beat the fused CPU kernel, whose tiles are mostly empty then.
FEW_AGENTS = 40
#: Below this many agents a softmax along them is slow enough for training to pay for the transposed form too.
VERY_FEW_AGENTS = 16

#: From this many queries on, copying a transposed bias costs more than the fused kernel gains.
LONG = 1024
#: Logits of one piece of queries: well inside an L2 cache.
CHUNK_ELEMENTS = 160_000


def _fused(q: Tensor, agents: int, bias: Tensor | None) -> bool:
    """Whether one scaled_dot_product_attention call is the faster form of softmax(scale q k^T + bias) v."""
    if q.device.type != "cpu" or q.dtype in (torch.float16, torch.bfloat16):
        return True
    # No fused CPU kernel gives the gradient of a bias; the call would fall back to a slower composition.
    learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    return agents > FEW_AGENTS and not learned


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    if bias is not None:
        # The fused kernel reads a transposed bias slowly; copied before it is expanded over the batch.
        bias = bias.contiguous().expand(*q.shape[:3], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def _logits(rows: Tensor, columns: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """scale rows columns^T + bias [B, h, N, M] for rows [B, h, N, d], columns [B, h, M, d], without a pass for either.

    For autograd separate operations are better: their backward makes fewer copies. There the caller scales.
    """
    B, h, N, M = *rows.shape[:3], columns.shape[2]
    rows, columns = rows.flatten(0, 1), columns.flatten(0, 1).transpose(1, 2)
    if bias is None:
        logits = torch.baddbmm(rows.new_zeros(1, 1, 1), rows, columns, beta=0, alpha=scale)
    else:
        logits = torch.baddbmm(bias.expand(B, h, N, M).flatten(0, 1), rows, columns, alpha=scale)
    return logits.unflatten(0, (B, h))


def _transposed(q: Tensor, agent: Tensor, agent_v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Queries <- agents with logits [B, h, n, N]: a softmax across few rows is vectorised along the long ones."""
    if bias is not None:
        bias = bias.expand(*q.shape[:3], agent.shape[2]).transpose(2, 3)
    return _logits(agent, q, bias, scale).softmax(2).transpose(2, 3) @ agent_v


def _transposed_in_chunks(
    q: Tensor, agent: Tensor, agent_v: Tensor, bias: Tensor | None, scale: float, size: int
) -> Tensor:
    """As :func:`_transposed`, ``size`` queries at a time. Not for autograd."""
    B, h, N, _ = q.shape
    out = q.new_empty(B, N, h, agent_v.shape[3]).transpose(1, 2)
    if bias is not None:
        bias = bias.expand(*bias.shape[:-2], N, agent.shape[2])
    for i in range(0, N, size):
        piece = slice(i, i + size)
        out[:, :, piece] = _transposed(
            q[:, :, piece], agent, agent_v, None if bias is None else bias[..., piece, :], scale
        )
    return out


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
    agent_bias, query_bias = (None if b is None else b.to(q.dtype) for b in (agent_bias, query_bias))
    training = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (q, k, v, agent, agent_bias, query_bias)
    )
    scaled = agent * scale if training else agent  # the smallest of the tensors

    if _fused(q, n, agent_bias):
        agent_v = _sdpa(agent, k, v, agent_bias, scale)  # [B, h, n, dv]
    elif training:
        logits = scaled @ k.transpose(2, 3)
        agent_v = (logits if agent_bias is None else logits + agent_bias).softmax(-1) @ v
    else:
        agent_v = _logits(agent, k, agent_bias, scale).softmax(-1) @ v

    # A transposed bias, which is how position tables [h, n, H, W] give it, is read as it lies by the transposed form;
    # a short one is copied soon enough.
    as_it_lies = query_bias is not None and query_bias.dim() > 1 and query_bias.stride(-1) != 1
    as_it_lies = as_it_lies and q.shape[2] >= LONG
    plain = not training and q.device.type == "cpu" and q.dtype == torch.float32
    if _fused(q, n, query_bias) and not (as_it_lies and plain):
        return _sdpa(q, agent, agent_v, query_bias, scale)
    if training and n >= VERY_FEW_AGENTS:
        logits = q @ scaled.transpose(2, 3)
        return (logits if query_bias is None else logits + query_bias).softmax(-1) @ agent_v
    size = max(128, CHUNK_ELEMENTS // max(1, q.shape[0] * q.shape[1] * n))
    if training or torch.compiler.is_compiling() or size >= q.shape[2]:
        return _transposed(q, agent, agent_v, query_bias, scale)
    return _transposed_in_chunks(q, agent, agent_v, query_bias, scale, size)
