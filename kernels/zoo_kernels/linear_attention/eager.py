"""Linear attentions through their states: a [d, dv] product of keys and values, never a token-by-token matrix.

Half precision is computed in float32 inside: products of two feature maps leave float16's range, and the states are
sums over all tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from zoo_kernels.linear_attention.causal import causal_exp, causal_linear


def _wide(*xs: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """float32 for half dtypes, everything else as it is."""
    return tuple(x.float() if x is not None and x.dtype in (torch.float16, torch.bfloat16) else x for x in xs)


def _positive(x: torch.Tensor, feature_map: str) -> torch.Tensor:
    if feature_map == "elu+1":
        return F.elu(x).add_(1)  # elu's backward needs its input only, so its output may be changed
    return x.relu() if feature_map == "relu" else x


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    feature_map: str,
    causal: bool,
    decay: torch.Tensor | None,
    normalize: bool,
    eps: float,
) -> torch.Tensor:
    """phi(q) (phi(k)^T v), chunk by chunk if causal."""
    dtype = v.dtype
    q, k, v, decay = _wide(q, k, v, decay)
    if feature_map == "exp" and causal:
        return causal_exp(q, k, v).to(dtype)
    if feature_map in ("softmax", "exp"):
        # exp: sum_d exp(q_d) sum_j exp(k_jd) v_j normalised is a softmax over d of q_d + logsumexp_j k_jd.
        state_Bhde = k.softmax(-2).transpose(-1, -2) @ v
        logits = q if feature_map == "softmax" else q + torch.logsumexp(k, -2, keepdim=True)
        return (logits.softmax(-1) @ state_Bhde).to(dtype)
    q, k = _positive(q, feature_map), _positive(k, feature_map)
    if causal:
        return causal_linear(q, k, v, decay, eps if normalize else None).to(dtype)
    out_BhNe = q @ (k.transpose(-1, -2) @ v)
    if normalize:
        total_BhN1 = q @ k.sum(-2).unsqueeze(-1)
        out_BhNe = out_BhNe / (total_BhN1 + eps)
    return out_BhNe.to(dtype)


def inline(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    """q times the state of centred values, plus the mean value."""
    dtype, tokens = v.dtype, k.shape[2]
    q, k, v = _wide(q, k, v)
    mean_Bh1e = v.mean(-2, keepdim=True)
    # sum_j (q.k_j - mean) v_j = q . (sum_j k_j v_j - (sum_j k_j) mean(v)): the correction joins the state.
    state_Bhde = k.transpose(-1, -2) @ v - k.sum(-2).unsqueeze(-1) * mean_Bh1e
    return (q @ (state_Bhde * (scale / tokens)) + mean_Bh1e).to(dtype)


def _rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    x0, x1 = x.unflatten(-1, (-1, 2)).unbind(-1)  # [B, h, N, d/2]
    return x * cos + torch.stack((-x1, x0), -1).flatten(-2) * sin


def mala(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    sin: torch.Tensor | None,
    cos: torch.Tensor | None,
    scale: float,
    eps: float,
) -> torch.Tensor:
    """One state from the rotated keys, one row of scalars from the plain ones."""
    dtype, tokens = v.dtype, k.shape[2]
    q, k, v, sin, cos = _wide(q, k, v, sin, cos)
    q, k = _positive(q, "elu+1"), _positive(k, "elu+1")
    z_BhN1 = q @ (k.sum(-2).unsqueeze(-1) * (scale / tokens))
    if sin is not None and cos is not None:
        q, k = _rotate(q, sin, cos), _rotate(k, sin, cos)
    state_Bhde = k.transpose(-1, -2) @ v * (scale / tokens)
    return ((q @ state_Bhde) * (1 + 1 / (z_BhN1 + eps)) - z_BhN1 * v.mean(-2, keepdim=True)).to(dtype)


#: Floats of second-order features that the linear Taylor form holds at a time.
TAYLOR_CHUNK = 2**20


def taylor(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    temperature: torch.Tensor | None,
    coefficients: tuple[float, float, float],
    normalize_input: bool,
    output_scale: float,
    linear: bool,
) -> torch.Tensor:
    """Direct: the [N, M] weights. Linear: states of order 0, 1 and 2, the last of size d^2 x dv."""
    dtype, (a, b, c) = v.dtype, coefficients
    q, k, v, temperature = _wide(q, k, v, temperature)
    if normalize_input:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    if temperature is not None:
        q = q * temperature[:, None, None]
    if not linear:
        x = q @ k.transpose(-1, -2)
        w_BhNM = (a * x + b) * x + c
        out_BhNe = w_BhNM @ v / w_BhNM.sum(-1, keepdim=True)
    else:
        # A column of ones: numerator and denominator in one product.
        v1 = F.pad(v, (0, 1), value=1.0)
        step = max(16, TAYLOR_CHUNK // max(1, q.shape[1] * q.shape[-1] ** 2))
        second: torch.Tensor | None = None
        for k_c, v_c in zip(k.split(step, 2), v1.split(step, 2)):
            part = _squares(k_c).transpose(-1, -2) @ v_c  # [B, h, d*d, dv+1]
            second = part if second is None else second + part
        first = k.transpose(-1, -2) @ v1 * b
        zeroth = v1.sum(-2, keepdim=True) * c
        rows = [_squares(q_c) @ (a * second) + (q_c @ first + zeroth) for q_c in q.split(step, 2)]
        total = torch.cat(rows, 2)
        out_BhNe = total[..., :-1] / total[..., -1:]
    return (out_BhNe * output_scale).to(dtype)


def _squares(x: torch.Tensor) -> torch.Tensor:
    """[B, h, N, d] -> [B, h, N, d*d], all products of two channels."""
    return (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
