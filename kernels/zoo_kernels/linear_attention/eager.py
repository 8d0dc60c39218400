"""Linear attentions through their states: a [d, dv] product of keys and values, never a token-by-token matrix.

Half precision is computed in float32 inside: products of two feature maps leave float16's range, and the states are
sums over all tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.linear_attention.causal import causal_exp, causal_linear, causal_softmax

#: Without autograd, heads of at least this many tokens go one by one: their intermediates stay in cache, and products
#: of two-dimensional views need no contiguous copies.
TOKENS_BY_HEAD = 512


def _wide(x: Tensor) -> Tensor:
    """float32 for half dtypes, everything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _by_head(q: Tensor, k: Tensor) -> bool:
    """Whether heads go one by one."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or q.is_cuda:
        return False
    return min(q.shape[2], k.shape[2]) >= TOKENS_BY_HEAD


def _empty_by_token(v: Tensor, tokens: int) -> Tensor:
    """[B, h, tokens, dv] whose memory holds token after token, as the layer after the attention wants it."""
    return v.new_empty(v.shape[0], tokens, v.shape[1], v.shape[3]).transpose(1, 2)


def _run(body: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``body`` on [..., N, d] tensors: all heads at once, or head by head where that is faster."""
    B, heads, tokens = q.shape[:3]
    if not _by_head(q, k):
        # Contiguous: as the products would make them, some of them twice.
        return body(*(_wide(x).contiguous() for x in (q, k, v))).to(v.dtype)
    out = _empty_by_token(v, tokens)
    # PyTorch's elementwise loops over a strided view run at full speed only on rows of whole 32 numbers.
    rows = _wide if q.shape[-1] % 32 == 0 else lambda x: _wide(x).contiguous()
    for b in range(B):
        for h in range(heads):
            out[b, h] = body(rows(q[b, h]), rows(k[b, h]), _wide(v[b, h]))
    return out


def _positive(x: Tensor, feature_map: str) -> Tensor:
    if feature_map == "elu+1":
        return F.elu(x).add_(1)  # elu's backward needs its input only, so its output may be changed
    return x.relu() if feature_map == "relu" else x


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str,
    causal: bool,
    decay: Tensor | None,
    normalize: bool,
    eps: float,
) -> Tensor:
    """phi(q) (phi(k)^T v), chunk by chunk if causal."""
    if causal and feature_map in ("exp", "softmax"):
        return (causal_exp if feature_map == "exp" else causal_softmax)(_wide(q), _wide(k), _wide(v)).to(v.dtype)
    if causal:

        def in_chunks(q: Tensor, k: Tensor, v: Tensor, rate: Tensor | None) -> Tensor:
            q, k = _positive(_wide(q), feature_map), _positive(_wide(k), feature_map)
            return causal_linear(q, k, _wide(v), rate, eps if normalize else None)

        rate = None if decay is None else _wide(decay)
        if not _by_head(q, k):
            return in_chunks(q, k, v, rate).to(v.dtype)
        out = _empty_by_token(v, q.shape[2])
        for h in range(q.shape[1]):
            for b in range(q.shape[0]):
                part = (slice(b, b + 1), slice(h, h + 1))
                out[part] = in_chunks(q[part], k[part], v[part], None if rate is None else rate[h : h + 1])
        return out

    def softmaxes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # exp: sum_d exp(q_d) sum_j exp(k_jd) v_j normalised is a softmax over d of q_d + logsumexp_j k_jd.
        logits = q + torch.logsumexp(k, -2, keepdim=True) if feature_map == "exp" else q
        return logits.softmax(-1) @ (k.contiguous().softmax(-2).transpose(-1, -2) @ v)

    def features(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = _positive(q, feature_map), _positive(k, feature_map)
        out = q @ (k.transpose(-1, -2) @ v)
        return out / (q @ k.sum(-2).unsqueeze(-1)).add_(eps) if normalize else out

    return _run(softmaxes if feature_map in ("softmax", "exp") else features, q, k, v)


def inline(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """q times the state of centred values, plus the mean value."""
    tokens = k.shape[2]

    def body(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mean = v.mean(-2, keepdim=True)
        # sum_j (q.k_j - mean) v_j = q . (sum_j k_j v_j - (sum_j k_j) mean(v)): the correction joins the state.
        state = k.transpose(-1, -2) @ v - k.sum(-2).unsqueeze(-1) * mean
        return (q @ (state * (scale / tokens))).add_(mean)

    return _run(body, q, k, v)


def _rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    x0, x1 = x.unflatten(-1, (-1, 2)).unbind(-1)  # [B, h, N, d/2]
    return x * cos + torch.stack((-x1, x0), -1).flatten(-2) * sin


def mala(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sin: Tensor | None,
    cos: Tensor | None,
    scale: float,
    eps: float,
) -> Tensor:
    """One state from the rotated keys, one row of scalars from the plain ones."""
    tokens = k.shape[2]

    def body(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = _positive(q, "elu+1"), _positive(k, "elu+1")
        z = q @ (k.sum(-2).unsqueeze(-1) * (scale / tokens))  # [..., N, 1]
        if sin is not None and cos is not None:
            q, k = (_rotate(x, _wide(sin), _wide(cos)) for x in (q, k))
        state = k.transpose(-1, -2) @ v * (scale / tokens)
        return (q @ state) * (1 + 1 / (z + eps)) - z * v.mean(-2, keepdim=True)

    return _run(body, q, k, v)


#: Floats of second-order features that the linear Taylor form holds at a time.
TAYLOR_CHUNK = 2**20


def taylor(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    temperature: Tensor | None,
    coefficients: tuple[float, float, float],
    normalize_input: bool,
    output_scale: float,
    linear: bool,
) -> Tensor:
    """Direct: the [N, M] weights. Linear: states of order 0, 1 and 2, the last of size d^2 x dv."""
    dtype, (a, b, c) = v.dtype, coefficients
    q, k, v = _wide(q), _wide(k), _wide(v)
    if normalize_input:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    if temperature is not None:
        q = q * _wide(temperature)[:, None, None]
    if not linear:
        x = q @ k.transpose(-1, -2)
        w_BhNM = (x * a).add_(b).mul(x).add_(c)  # no product saves what it gave, so that may be changed
        out_BhNe = w_BhNM @ v / w_BhNM.sum(-1, keepdim=True)
    else:
        # A column of ones: numerator and denominator in one product.
        v1 = F.pad(v, (0, 1), value=1.0)
        step = max(16, TAYLOR_CHUNK // max(1, q.shape[1] * q.shape[-1] ** 2))
        parts = (_squares(k_c).transpose(-1, -2) @ v_c for k_c, v_c in zip(k.split(step, 2), v1.split(step, 2)))
        second = sum(parts, torch.zeros((), dtype=q.dtype, device=q.device))  # [B, h, d*d, dv + 1]
        first = k.transpose(-1, -2) @ v1 * b
        zeroth = v1.sum(-2, keepdim=True) * c
        rows = [_squares(q_c) @ (a * second) + (q_c @ first + zeroth) for q_c in q.split(step, 2)]
        total = torch.cat(rows, 2)
        out_BhNe = total[..., :-1] / total[..., -1:]
    return (out_BhNe * output_scale).to(dtype)


def _squares(x: Tensor) -> Tensor:
    """[B, h, N, d] -> [B, h, N, d*d], all products of two channels."""
    return (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
