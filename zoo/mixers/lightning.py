"""Lightning Attention-2: linear attention without a denominator, normalised afterwards; causal with a decay per head.

Lightning Attention-2 (Qin et al., arXiv 2401.04658, section 3; the tiling is the operator's) computes the attention of
TransNormerLLM (arXiv 2307.14995). Written from the papers' equations; no authors' implementation was compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.linear_attention import linear_attention


@register_mixer(name="lightning")
class LightningAttention(Mixer):
    """``Norm(q (k^T v))``, or causal ``Norm(sum_{s <= t} lambda^(t-s) (q_t . k_s) v_s)`` in row-major order.

    Queries and keys pass through SiLU; Norm divides by the root mean square over all channels.

    Args:
        dim: channels C.
        num_heads: attention heads.
        causal: a token sees itself and those before it, row by row.
        decay: lambda of every head, one number or one for each, in (0, 1]; None for ``exp(-2^(-8h / heads))`` of head
            h = 1 ..., slopes that spread from a few tokens to a few hundred. Causal only.
        gate: multiply the normalised result by another projection of the input, as TransNormerLLM's blocks do.
        qkv_bias: bias of the projections.
        norm_eps: added to the mean square.

    Raises:
        ValueError: ``decay`` outside (0, 1], of another length than ``num_heads``, or without ``causal``.

    Source: section 3: the left product (bidirectional), the recurrence ``kv_t = lambda kv_{t-1} + k_t v_t^T`` (causal).
    """

    growth = "linear"
    normalised_rows = False

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        causal: bool = False,
        decay: float | Sequence[float] | None = None,
        gate: bool = False,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
    ):
        super().__init__(dim, num_heads)
        if decay is not None and not causal:
            raise ValueError(f"decay={decay!r} without causal=True: both directions at once know no decay")
        self.causal, self.norm_eps = causal, norm_eps
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.gate = TokenLinear(dim, dim, bias=qkv_bias) if gate else None
        self.proj = TokenLinear(dim, dim)
        if not causal:
            self.decay: Tensor | None = None
            return
        if decay is None:
            rates = torch.exp(-(2.0 ** (-8.0 * torch.arange(1, num_heads + 1) / num_heads)))
        else:
            given = [decay] * num_heads if isinstance(decay, (int, float)) else list(decay)
            if len(given) != num_heads or not all(0 < rate <= 1 for rate in given):
                raise ValueError(f"decay={decay!r}: accepted are a number in (0, 1] or {num_heads} of them")
            rates = torch.tensor([float(rate) for rate in given])
        self.register_buffer("decay", rates, persistent=False)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, H, W, C] -> three of [B, heads, H*W, d]"""
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return F.silu(q), F.silu(k), v

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        self._check(x, prefix)
        q, k, v = self._qkv(x)
        decay = None if self.decay is None else self.decay.to(q.dtype)
        out = linear_attention(q, k, v, feature_map="identity", causal=self.causal, decay=decay)
        out = out.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3])  # [B, H, W, C]
        out = F.rms_norm(out, (self.dim,), eps=self.norm_eps)
        return self.proj(out if self.gate is None else out * self.gate(x))

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """The weights before the norm, ``[B, heads, H*W, H*W]``: of either sign, and rows sum to anything."""
        self._check(x)
        q, k, _ = self._qkv(x)
        weights = q @ k.mT
        if self.decay is None:
            return weights
        t = torch.arange(q.shape[2], device=x.device)
        lag = (t[:, None] - t).to(q.dtype)  # [t, s]
        return weights * torch.where(lag >= 0, self.decay.to(q.dtype)[:, None, None] ** lag.clamp(min=0), 0.0)

    def flops(self, height: int, width: int) -> int:
        """Multiply-accumulates of one image; causal, of the recurrence: its tiled form computes more."""
        N = height * width
        return linear_flops(N, self.qkv, self.gate, self.proj) + 2 * N * self.dim * self.head_dim

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, causal={self.causal}, gate={self.gate is not None}"
