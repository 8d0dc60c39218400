"""Causal linear attention in chunks: quadratic inside a chunk, a running state between chunks.

The tiling is that of Lightning Attention-2 (arXiv:2401.04658); here all chunks go at once, and the exclusive prefix
over chunk states is one small matrix product instead of a loop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

CHUNK = 128
#: The exponential map and the causal softmax form [chunk, chunk, d] inside a chunk.
CHUNK_EXP = 32


def _chunks(x: torch.Tensor, size: int) -> torch.Tensor:
    """[B, h, N, d] -> [B, h, n, size, d], padded at the end."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % size))
    return x.unflatten(2, (x.shape[2] // size, size))


def causal_linear(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor | None, eps: float | None
) -> torch.Tensor:
    """sum_{j<=i} decay^(i-j) (q_i . k_j) v_j, divided by the sum of the weights + eps unless eps is None.

    q, k: features [B, h, N, d]; v: [B, h, N, dv]; decay: [h] or None.
    """
    tokens, size = q.shape[2], min(CHUNK, q.shape[2])
    if eps is not None:
        v = F.pad(v, (0, 1), value=1.0)  # the denominator as one more channel
    q, k, v = (_chunks(x, size) for x in (q, k, v))  # [B, h, n, C, .]
    n = q.shape[2]
    i = torch.arange(size, device=q.device)
    c = torch.arange(n, device=q.device)
    if decay is None:
        inside = (i[:, None] >= i).to(q.dtype)
        before = (c[:, None] > c).to(q.dtype)  # chunk i takes the states of all chunks j < i
        q_in, k_out = q, k
    else:
        rate = decay.log()[:, None, None]  # [h, 1, 1]

        def power(exponent: torch.Tensor) -> torch.Tensor:
            return (rate * exponent.clamp(min=0).to(q.dtype)).exp()

        inside = (power(i[:, None] - i) * (i[:, None] >= i)).unsqueeze(1)  # [h, 1, C, C]
        before = power((c[:, None] - c - 1) * size) * (c[:, None] > c)  # [h, n, n]
        q_in = q * power(i[:, None] + 1).unsqueeze(1)
        k_out = k * power(size - 1 - i[:, None]).unsqueeze(1)
    states = k_out.transpose(-1, -2) @ v  # [B, h, n, d, dv]
    prefix = (before @ states.flatten(-2)).view_as(states)
    out = q_in @ prefix + ((q @ k.transpose(-1, -2)) * inside) @ v
    out = out.flatten(2, 3)[:, :, :tokens]
    return out if eps is None else out[..., :-1] / (out[..., -1:] + eps)


def causal_exp(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Weights sum_d exp(q_id + k_jd) over j <= i, normalised; all exponentials taken relative to a maximum.

    Chunk after chunk, since the running state is kept relative to the running maximum of every key channel.
    """
    v = F.pad(v, (0, 1), value=1.0)
    state = v.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])  # [B, h, d, dv + 1]
    top = torch.full_like(k[:, :, :1], torch.finfo(k.dtype).min / 4)  # [B, h, 1, d]
    i = torch.arange(min(CHUNK_EXP, q.shape[2]), device=q.device)
    outs = []
    for q_c, k_c, v_c in zip(q.split(CHUNK_EXP, 2), k.split(CHUNK_EXP, 2), v.split(CHUNK_EXP, 2)):
        later = i[: q_c.shape[2], None] < i[: q_c.shape[2]]
        logits = torch.logsumexp(q_c.unsqueeze(-2) + k_c.unsqueeze(-3), -1).masked_fill(later, float("-inf"))
        past = q_c + top
        shift = torch.maximum(logits.detach().amax(-1, keepdim=True), past.detach().amax(-1, keepdim=True))
        out = (past - shift).exp() @ state + (logits - shift).exp() @ v_c
        outs.append(out[..., :-1] / out[..., -1:])
        raised = torch.maximum(top, k_c.detach().amax(2, keepdim=True))
        state = state * (top - raised).exp().transpose(-1, -2) + (k_c - raised).exp().transpose(-1, -2) @ v_c
        top = raised
    return torch.cat(outs, 2)


def causal_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Latte's causal form (arXiv:2402.17512): softmax of q over d; of k, channel by channel, over the tokens so far.

    Chunk after chunk. The state of a channel is the mean of the values so far under that channel's softmax, kept with
    the running maximum and the normaliser relative to it: no exponent is above zero, whatever the range of k.
    """
    q = q.softmax(-1)
    mean = v.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])  # [B, h, d, dv]
    top = torch.full_like(k[:, :, :1], torch.finfo(k.dtype).min / 4)  # [B, h, 1, d]
    norm = torch.zeros_like(top)
    i = torch.arange(min(CHUNK_EXP, q.shape[2]), device=q.device)
    outs = []
    for q_c, k_c, v_c in zip(q.split(CHUNK_EXP, 2), k.split(CHUNK_EXP, 2), v.split(CHUNK_EXP, 2)):
        later = (i[: q_c.shape[2], None] < i[: q_c.shape[2]]).unsqueeze(-1)  # [C, C, 1]
        past = k_c.unsqueeze(-3).masked_fill(later, float("-inf"))  # [B, h, C, C, d]
        peak = torch.maximum(top, past.detach().amax(-2))  # [B, h, C, d]: the maximum that each query sees
        inside = (past - peak.unsqueeze(-2)).exp()
        before = norm * (top - peak).exp()
        total = inside.sum(-2) + before
        share = q_c / total
        weights = (share.unsqueeze(-2) * inside).sum(-1)  # [B, h, C, C]
        outs.append((share * before) @ mean + weights @ v_c)
        top, norm = peak[:, :, -1:], total[:, :, -1:]
        kept = (before[:, :, -1:] / norm).transpose(-1, -2)  # [B, h, d, 1]
        mean = mean * kept + ((k_c - top).exp() / norm).transpose(-1, -2) @ v_c
    return torch.cat(outs, 2)
