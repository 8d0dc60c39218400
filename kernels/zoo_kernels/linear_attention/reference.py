"""The linear attentions written as the quadratic attentions that they equal: every weight of every pair, no state."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _causal_weights(q: torch.Tensor, decay: torch.Tensor | None) -> torch.Tensor:
    """[h or 1, N, N]: decay^(i-j) where j <= i, else 0."""
    i = torch.arange(q.shape[2], device=q.device)
    lag = (i[:, None] - i).clamp(min=0).to(q.dtype)
    past = (i[:, None] >= i).to(q.dtype)
    return past[None] if decay is None else past * decay[:, None, None] ** lag


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
    """out_i = sum_j w_ij v_j [/ (sum_j w_ij + eps)] with w_ij = phi(q_i) . phi(k_j)."""
    if feature_map == "softmax" and causal:
        past = _causal_weights(q, None).bool().unsqueeze(-1)  # [1, N, N, 1]
        k_BhNMd = k.unsqueeze(-3).masked_fill(~past, float("-inf")).softmax(-2)
        return torch.einsum("bhid,bhijd,bhje->bhie", q.softmax(-1), k_BhNMd, v)
    if feature_map == "softmax":
        return q.softmax(-1) @ k.softmax(-2).transpose(-1, -2) @ v
    if feature_map == "exp":
        # log w_ij = log sum_d exp(q_id + k_jd), so that no exponential overflows.
        logits_BhNM = torch.logsumexp(q.unsqueeze(-2) + k.unsqueeze(-3), -1)
        if causal:
            logits_BhNM = logits_BhNM + _causal_weights(q, None).log()
        return logits_BhNM.softmax(-1) @ v
    if feature_map == "elu+1":
        q, k = F.elu(q) + 1, F.elu(k) + 1
    elif feature_map == "relu":
        q, k = q.relu(), k.relu()
    w_BhNM = q @ k.transpose(-1, -2)
    if causal:
        w_BhNM = w_BhNM * _causal_weights(q, decay)
    out_BhNe = w_BhNM @ v
    return out_BhNe / (w_BhNM.sum(-1, keepdim=True) + eps) if normalize else out_BhNe


def inline(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Weights q.k, shifted row by row so that they add up to one (arXiv:2412.06590, eq. 5)."""
    w_BhNM = scale * q @ k.transpose(-1, -2)
    tokens = k.shape[2]
    return (w_BhNM - w_BhNM.mean(-1, keepdim=True) + 1) @ v / tokens


def rotate_pairs(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """Rotate the channel pairs (0, 1), (2, 3) ... of x [B, h, N, d] by the angles of sin, cos [N, d]."""
    x0, x1 = x[..., 0::2], x[..., 1::2]
    return x * cos + torch.stack([-x1, x0], -1).flatten(-2) * sin


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
    """Weights beta_i q'.k' - gamma_i over the tokens (arXiv:2507.00698, eq. 8-10), q' and k' rotated."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    z_BhN1 = scale * (q @ k.transpose(-1, -2)).mean(-1, keepdim=True)
    if sin is not None and cos is not None:
        q, k = rotate_pairs(q, sin, cos), rotate_pairs(k, sin, cos)
    w_BhNM = scale * q @ k.transpose(-1, -2)
    return (w_BhNM * (1 + 1 / (z_BhN1 + eps)) - z_BhN1) @ v / k.shape[2]


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
    """Weights a x^2 + b x + c of x = q.k, divided by their sum (arXiv:2403.02920, eq. 1); ``linear`` plays no role."""
    if normalize_input:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    if temperature is not None:
        q = q * temperature[:, None, None]
    a, b, c = coefficients
    x = q @ k.transpose(-1, -2)
    w_BhNM = a * x * x + b * x + c
    return output_scale * (w_BhNM @ v) / w_BhNM.sum(-1, keepdim=True)
