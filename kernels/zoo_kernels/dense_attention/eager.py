"""Dense attention in PyTorch ops: softmax by scaled_dot_product_attention, other scores in blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.dense_attention.reference import forward as whole


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, scale: float | None = None, score: str = "softmax"
) -> Tensor:
    """See :func:`zoo_kernels.dense_attention.dense_attention`; ``bias`` has four dimensions."""
    if q.shape[0] == 0 or q.shape[1] == 0 or v.shape[-1] == 0:
        return q.new_zeros(*q.shape[:3], v.shape[-1])
    if score == "softmax":
        if bias is not None and bias.dtype != torch.bool:
            bias = bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return whole(q, k, v, bias=bias, scale=scale, score=score)
