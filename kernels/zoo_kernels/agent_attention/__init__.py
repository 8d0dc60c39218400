"""Agent attention: a few agent tokens collect from all keys, then every query reads from the agents.

Agent Attention: On the Integration of Softmax and Linear Attention (ECCV 2024, arXiv 2312.08874, eq. 5-7).
"""

from __future__ import annotations

from torch import Tensor

from zoo_kernels.agent_attention.reference import attention_matrices
from zoo_kernels.dispatch import Operator

__all__ = ["OPERATOR", "agent_attention", "attention_matrices"]

OPERATOR = Operator("agent_attention", ("reference", "eager", "triton"), autocast=True)


def agent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agent: Tensor,
    *,
    agent_bias: Tensor | None = None,
    query_bias: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Two softmax attentions in a row: ``agents <- keys``, then ``queries <- agents``; cost linear in N and M.

    ``agent_v = softmax(scale agent k^T + agent_bias) v``, ``out = softmax(scale q agent^T + query_bias) agent_v``.

    Args:
        q: [B, h, N, d] queries.
        k: [B, h, M, d] keys.
        v: [B, h, M, dv] values (dv = d in the paper).
        agent: [B, h, n, d] agent tokens, for example queries pooled to a grid. Prefix tokens are plain tokens.
        agent_bias: added to the first logits, broadcastable to [B, h, n, M]; may carry gradient.
        query_bias: added to the second logits, broadcastable to [B, h, N, n]; may carry gradient.
        scale: factor of both logits, by default d ** -0.5.
        backend: "auto", "reference", "eager" or "triton".

    Returns:
        [B, h, N, dv] in the dtype of q.

    Raises:
        ValueError: wrong rank, sizes that disagree, a bias that does not broadcast, no agent or no key.
        TypeError: dtypes that differ.
        BackendError: a backend asked for by name that cannot serve the call.

    Source: eq. 5 (agent attention) with the biases of eq. 7; the depthwise term of eq. 7 belongs to the caller.
    """
    for name, t in (("q", q), ("k", k), ("v", v), ("agent", agent)):
        if t.dim() != 4:
            raise ValueError(f"{name} has shape {tuple(t.shape)}: four dimensions [B, heads, tokens, d] are needed")
        if not t.is_floating_point():
            raise TypeError(f"{name} has dtype {t.dtype}: a floating dtype is needed")
        if t.dtype != q.dtype and not OPERATOR.autocasts(q):
            raise TypeError(f"{name} has dtype {t.dtype} but q has {q.dtype}: they must be equal")
        if t.device != q.device:
            raise ValueError(f"{name} is on {t.device} but q is on {q.device}")
        if t.shape[0] != q.shape[0]:
            raise ValueError(f"{name} has batch {t.shape[0]} but q has {q.shape[0]}: they must be equal")
        if t.shape[1] != q.shape[1]:
            raise ValueError(f"{name} has {t.shape[1]} heads but q has {q.shape[1]}: they must be equal")
        if name != "v" and t.shape[3] != q.shape[3]:
            raise ValueError(f"{name} has head_dim {t.shape[3]} but q has {q.shape[3]}: they must be equal")
    if v.shape[2] != k.shape[2]:
        raise ValueError(f"v has {v.shape[2]} tokens but k has {k.shape[2]}: they must be equal")
    for name, t in (("k", k), ("agent", agent)):
        if t.shape[2] == 0:
            raise ValueError(f"{name} has 0 tokens: attention over none is not defined")
    B, h, N, M, n = *q.shape[:3], k.shape[2], agent.shape[2]
    _check_bias("agent_bias", agent_bias, (B, h, n, M))
    _check_bias("query_bias", query_bias, (B, h, N, n))
    if scale is None:
        scale = q.shape[-1] ** -0.5
    return OPERATOR(q, k, v, agent, agent_bias=agent_bias, query_bias=query_bias, scale=float(scale), backend=backend)


def _check_bias(name: str, bias: Tensor | None, target: tuple[int, int, int, int]) -> None:
    """A bias must broadcast to ``target`` without enlarging it."""
    if bias is None:
        return
    fits = bias.dim() <= 4 and all(b in (1, t) for b, t in zip(reversed(bias.shape), reversed(target)))
    if not fits:
        raise ValueError(f"{name} has shape {tuple(bias.shape)}: it must broadcast to {target}")
    if not bias.is_floating_point():
        raise TypeError(f"{name} has dtype {bias.dtype}: an additive floating bias is needed")
