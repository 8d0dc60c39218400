"""Dense attention in PyTorch ops: softmax by scaled_dot_product_attention, other scores in blocks of queries or keys.

A block of the score matrix is made, used and forgotten, in the forward and again in the backward, so that memory is
linear in the number of tokens; a score matrix that fits in the cache is made whole, and so is any under torch.compile
and torch.export, where it is the compiler's to cut.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_BYTES = 1 << 20  # of scores in a block, for each thread
WHOLE_BYTES = 8 << 20  # of scores that are made at once


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
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if torch.compiler.is_compiling() or q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * 4 <= WHOLE_BYTES:
        weights, _ = _weights(q, k, bias, scale, score)
        return (weights @ v.to(weights.dtype)).to(q.dtype)
    return _Blocks.apply(q, k, v, bias, scale, score)


def _wide(t: Tensor) -> torch.dtype:
    """The dtype of the scores: float32 for half precision."""
    return torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, scale: float, score: str) -> tuple[Tensor, Tensor | None]:
    """Weights [..., n, m] of the values and, for cog, the signs of the logits; q is [..., n, d], k [..., m, d]."""
    wide = _wide(q)
    logits = (q.to(wide) * scale) @ k.to(wide).transpose(-2, -1)
    hidden = None
    if bias is not None:
        hidden = ~bias if bias.dtype == torch.bool else bias == float("-inf")
        if bias.dtype != torch.bool:
            logits = logits + bias.to(wide).masked_fill(hidden, 0.0)
    signs = logits.sign() if score == "cog" else None
    if score == "relu":
        weights = logits.relu()
    else:
        height = logits.abs() if score == "cog" else logits
        if hidden is not None:
            # Finite, so that a row without any visible pair has no NaN; its weights become 0 below.
            height = height.masked_fill(hidden, torch.finfo(wide).min)
        weights = height.softmax(-2 if score == "reversed" else -1)
    if signs is not None:
        weights = weights * signs
    return (weights if hidden is None else weights.masked_fill(hidden, 0.0)), signs


Block = tuple[slice, slice, slice, slice]  # images, heads, queries, keys


def _blocks(q: Tensor, k: Tensor, score: str) -> list[Block]:
    """The score matrix in blocks; scores that are normalised over the queries need all of them at once."""
    b, h, n, m = *q.shape[:3], k.shape[2]
    room = max(1, BLOCK_BYTES * torch.get_num_threads() // 4)  # scores
    long, short = (m, n) if score == "reversed" else (n, m)  # the axis that is cut, and the other
    step = min(long, max(32, room // short))
    heads = min(h, max(1, room // (short * step)))
    images = min(b, max(1, room // (short * step * heads)))

    def cut(size: int, step: int) -> list[slice]:
        return [slice(i, min(i + step, size)) for i in range(0, size, step)]

    every = slice(0, short)
    return [
        (i, j, every, c) if score == "reversed" else (i, j, c, every)
        for i in cut(b, images)
        for j in cut(h, heads)
        for c in cut(long, step)
    ]


def _part(bias: Tensor | None, block: Block) -> Tensor | None:
    """The part of a broadcastable bias that belongs to a block."""
    return None if bias is None else bias[tuple(s if n > 1 else slice(None) for s, n in zip(block, bias.shape))]


class _Blocks(torch.autograd.Function):
    """Block after block; the backward makes the weights of each block again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, score: str) -> Tensor:
        wide = _wide(q)
        # Blocks of keys add up, in float32; blocks of queries do not meet.
        out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=wide if score == "reversed" else q.dtype, device=q.device)
        for block in _blocks(q, k, score):
            images, heads, queries, keys = block
            weights, _ = _weights(q[images, heads, queries], k[images, heads, keys], _part(bias, block), scale, score)
            part = weights @ v[images, heads, keys].to(wide)
            if score == "reversed":
                out[images, heads, queries] += part
            else:
                out[images, heads, queries] = part
        ctx.save_for_backward(q, k, v, bias)
        ctx.how = scale, score
        return out.to(q.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        scale, score = ctx.how
        wide = _wide(q)
        d_q, d_k, d_v = (torch.zeros(t.shape, dtype=wide, device=t.device) for t in (q, k, v))
        d_bias = torch.zeros(bias.shape, dtype=wide, device=bias.device) if ctx.needs_input_grad[3] else None
        for block in _blocks(q, k, score):
            images, heads, queries, keys = block
            at_q, at_k = (images, heads, queries), (images, heads, keys)
            weights, signs = _weights(q[at_q], k[at_k], _part(bias, block), scale, score)
            g = grad[at_q].to(wide)
            d_v[at_k] += weights.transpose(-2, -1) @ g
            d_weights = g @ v[at_k].to(wide).transpose(-2, -1)
            if score == "relu":
                d_logits = d_weights.mul_(weights > 0)
            else:
                if signs is not None:
                    weights, d_weights = weights.mul_(signs), d_weights.mul_(signs)
                over = -2 if score == "reversed" else -1
                d_logits = torch._softmax_backward_data(d_weights, weights, over, wide)
                if signs is not None:
                    d_logits = d_logits.mul_(signs)
            if d_bias is not None:
                target = _part(d_bias, block)
                assert target is not None
                target += d_logits.sum_to_size(target.shape)
            d_q[at_q] += scale * (d_logits @ k[at_k].to(wide))
            d_k[at_k] += scale * (d_logits.transpose(-2, -1) @ q[at_q].to(wide))
        return (
            d_q.to(q.dtype),
            d_k.to(k.dtype),
            d_v.to(v.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
        )
