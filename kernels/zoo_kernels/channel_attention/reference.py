"""Channel attention as the equation reads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def forward(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    *,
    num_heads: int,
    scale: float | None = None,
) -> Tensor:
    """See :func:`zoo_kernels.channel_attention.channel_attention`."""
    qkv = F.linear(x, qkv_weight, qkv_bias)  # [B, N, 3C]
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    attention = (scale * k.transpose(-2, -1) @ v).softmax(-1)  # [B, heads, d, d]
    out = q @ attention.transpose(-2, -1)  # [B, heads, N, d]
    return F.linear(out.transpose(1, 2).flatten(2), proj_weight, proj_bias)
