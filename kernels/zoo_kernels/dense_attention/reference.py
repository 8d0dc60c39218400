"""Dense attention with each score function as its equation reads."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, scale: float | None = None, score: str = "softmax"
) -> Tensor:
    """See :func:`zoo_kernels.dense_attention.dense_attention`; ``bias`` has four dimensions."""
    logits = (q.shape[-1] ** -0.5 if scale is None else scale) * (q @ k.transpose(-2, -1))  # [B, h, N, M]
    hidden = torch.zeros((), dtype=torch.bool, device=q.device)
    if bias is not None:
        hidden = ~bias if bias.dtype == torch.bool else bias == float("-inf")
        if bias.dtype != torch.bool:
            logits = logits + bias.to(logits.dtype).masked_fill(hidden, 0.0)
    return weights(logits, hidden, score) @ v


def weights(logits: Tensor, hidden: Tensor, score: str) -> Tensor:
    """[B, h, N, M] -> the weights of the values, 0 where ``hidden`` (broadcastable, bool)."""
    if score == "relu":
        return logits.relu().masked_fill(hidden, 0.0)
    over = -2 if score == "reversed" else -1
    height = logits.abs() if score == "cog" else logits
    top = height.masked_fill(hidden, float("-inf")).amax(over, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    powers = (height - top.detach()).masked_fill(hidden, float("-inf")).exp()
    total = powers.sum(over, keepdim=True)
    share = powers / total.masked_fill(total == 0, 1.0)
    return share * logits.sign() if score == "cog" else share
