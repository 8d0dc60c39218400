"""Channel attention in PyTorch ops, in the cheaper of two exact forms.

Ordinary form: project to q, k, v, attend, project; 4 N C^2 multiply-adds and 2 N C d.
Gram form: with m the mean token and G = (x - m)^T (x - m),

    k^T v = Wk G Wv^T + N (Wk m + bk) (Wv m + bv)^T,
    y = (x - m) T^T + (T m + c),  T = Wp blockdiag(A) Wq,  c = Wp blockdiag(A) bq + bp,

so that q, k and v are never made: 2 N C^2 and, an image, 2 C^3 + 2 C^2 d. The Gram matrix is centred because a common
offset of the channels would otherwise cancel digits in G, and all C x C work is float32 for half-precision inputs.
"""

from __future__ import annotations

import torch
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
    n, c = x.shape[1:]
    form = gram if gram_pays(n, c) else ordinary
    scale = (c // num_heads) ** -0.5 if scale is None else scale
    return form(x, qkv_weight, qkv_bias, proj_weight, proj_bias, num_heads, scale)


def gram_pays(n: int, c: int) -> bool:
    """Whether the Gram form is the cheaper one: it saves 2 N C^2 and costs about 2 C^3 more."""
    return n >= 2 * c


def ordinary(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    heads: int,
    scale: float,
) -> Tensor:
    """The form of the equation, without the transpose of the output."""
    qkv = F.linear(x, qkv_weight, qkv_bias)  # [B, N, 3C]
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
    if x.dtype == torch.bfloat16:
        # Scaling the sum rounds less often than scaling k.
        attention = ((k.transpose(-2, -1) @ v).float() * scale).softmax(-1).to(x.dtype)  # [B, heads, d, d]
    else:
        # float16 would overflow in a sum over many tokens: the scale goes in before the sum.
        attention = ((k * scale).transpose(-2, -1) @ v).softmax(-1)
    out = q @ attention.transpose(-2, -1)  # [B, heads, N, d]
    return F.linear(out.transpose(1, 2).flatten(2), proj_weight, proj_bias)


def gram(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    heads: int,
    scale: float,
) -> Tensor:
    """The form without q, k and v."""
    b, n, c = x.shape
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    mean = x.mean(1, keepdim=True, dtype=wide)  # [B, 1, C]
    centred = x - mean.to(x.dtype)
    # What rounding the mean to half precision leaves in the sum is of second order in G and is not corrected.
    mean = mean.to(x.dtype).to(wide)
    g = (centred.transpose(1, 2) @ centred).to(wide)  # [B, C, C]
    t, const = finish(mean, g, n, qkv_weight, qkv_bias, proj_weight, proj_bias, heads, scale)
    if wide == x.dtype:
        # The centred copy is free again before the output is made.
        del centred
        return torch.baddbmm(const, x, t.transpose(1, 2))
    # y = (x - m) T^T + (T m + const): the tokens enter centred, which keeps their digits in half precision.
    const = const + mean @ t.transpose(1, 2)
    return torch.baddbmm(const.to(x.dtype), centred, t.transpose(1, 2).to(x.dtype))


def finish(
    mean: Tensor,
    gram: Tensor,
    n: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The C x C part: T [B, C, C] and the constant [B, 1, C] of y = x T^T + const, in the dtype of ``gram``.

    ``mean`` is [B, 1, C] and ``gram`` [B, C, C], of ``n`` tokens.
    """
    wide = gram.dtype
    wq, wk, wv = qkv_weight.to(wide).unflatten(0, (3, heads, -1))  # [heads, d, C]
    wp = proj_weight.to(wide)
    biases = None if qkv_bias is None else qkv_bias.to(wide).unflatten(0, (3, heads, -1))  # [3, heads, d]
    mean_k = torch.einsum("hdc,boc->bhdo", wk, mean)  # [B, heads, d, 1]
    mean_v = torch.einsum("hdc,boc->bhod", wv, mean)  # [B, heads, 1, d]
    if biases is not None:
        mean_k, mean_v = mean_k + biases[1][:, :, None], mean_v + biases[2][:, None, :]
    left = (wk.flatten(0, 1) @ gram).unflatten(1, (heads, -1))  # [B, heads, d, C]
    ktv = left @ wv.transpose(1, 2) + (n * mean_k) * mean_v  # [B, heads, d, d]
    attention = (scale * ktv).softmax(-1)
    mixed = (attention @ wq).flatten(1, 2)  # [B, C, C]: blockdiag(A) Wq
    t = wp @ mixed  # [B, C, C]
    const = torch.zeros_like(mean)
    if biases is not None:
        const = (attention @ biases[0][:, :, None]).flatten(1, 2).transpose(1, 2) @ wp.t()  # [B, 1, C]
    return t, const if proj_bias is None else const + proj_bias.to(wide)
