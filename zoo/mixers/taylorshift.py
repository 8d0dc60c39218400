"""TaylorShift: softmax with the exponential's second-order Taylor polynomial, direct or at linear cost.

TaylorShift: Shifting the Complexity of Self-Attention from Squared to Linear (and Back) using Taylor-Softmax (Nauen et
al., ICPR 2024, arXiv 2403.02920). Authors' code: github.com/tobna/TaylorShift (MIT).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.linear_attention import taylor_attention

FORMS = ("auto", "direct", "linear")


def crossover(head_dim: int) -> int:
    """Tokens up to which the direct form is taken: beyond, the linear one needs fewer operations."""
    return head_dim**2 + head_dim + 1


@register_mixer(name="taylorshift")
class TaylorShiftAttention(Mixer):
    """Weights ``a x^2 + b x + c`` of ``x = q . k``, divided by their sum, over the map and prefix tokens.

    The polynomial needs products of no more than two channels, so keys and values can be summed up once (linear form).
    Both forms give the same result.

    Args:
        dim: channels C.
        num_heads: attention heads.
        qkv_bias: bias of the projection to queries, keys and values.
        coefficients: (a, b, c), of a polynomial that is never negative; by default exp's.
        normalize_input: queries and keys get unit length, and queries a learned factor (temperature) for each head;
            otherwise queries are multiplied by ``dim ** -0.5``.
        scale_output: multiply the result by ``sqrt(N / head_dim)``, N the number of tokens.
        form: "direct" (N^2 weights), "linear", or "auto": linear for more than :func:`crossover` tokens.

    Raises:
        ValueError: a polynomial that may become negative, another form.
    """

    growth = "linear"
    takes_prefix = True

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        coefficients: tuple[float, float, float] = (0.5, 1.0, 1.0),
        normalize_input: bool = True,
        scale_output: bool = False,
        form: str = "auto",
    ):
        super().__init__(dim, num_heads)
        if len(coefficients) != 3 or not coefficients[0] > 0:
            raise ValueError(f"coefficients={coefficients!r}: accepted are a > 0, b and c of a x^2 + b x + c")
        a, b, c = (float(x) for x in coefficients)
        if c < b**2 / (4 * a):
            raise ValueError(
                f"coefficients={coefficients!r}: {a} x^2 + {b} x + {c} is negative for some x (c < b^2/4a)"
            )
        if form not in FORMS:
            raise ValueError(f"form={form!r}: accepted are {', '.join(map(repr, FORMS))}")
        self.coefficients, self.scale_output, self.form = (a, b, c), scale_output, form
        self.normalised_rows = not scale_output
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.temperature = nn.Parameter(torch.ones(num_heads)) if normalize_input else None
        self.no_decay = ("temperature",) if normalize_input else ()
        self.proj = TokenLinear(dim, dim)

    def _qkv(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, C] -> three of [B, heads, N, d]"""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return (q if self.temperature is not None else q * self.dim**-0.5), k, v

    def forward_tokens(self, tokens: Tensor) -> Tensor:
        """The same on ``[B, N, C]``."""
        q, k, v = self._qkv(tokens)
        out = taylor_attention(
            q,
            k,
            v,
            temperature=None if self.temperature is None else self.temperature.to(q.dtype),
            coefficients=self.coefficients,
            normalize_input=self.temperature is not None,
            scale_output=self.scale_output,
            form=self.form,
        )  # [B, heads, N, d]
        return self.proj(out.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        self._check(x, prefix)
        size = x.shape[1:3]
        if prefix is None:
            return self.forward_tokens(x.flatten(1, 2)).unflatten(1, size)
        out, P = self.forward_tokens(torch.cat([prefix, x.flatten(1, 2)], dim=1)), prefix.shape[1]
        return out[:, P:].unflatten(1, size), out[:, :P]

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``; rows sum to 1, or with ``scale_output`` to ``sqrt(H*W / head_dim)``."""
        self._check(x)
        q, k, _ = self._qkv(x.flatten(1, 2))
        if self.temperature is not None:
            q, k = F.normalize(q, dim=-1) * self.temperature[:, None, None], F.normalize(k, dim=-1)
        a, b, c = self.coefficients
        scores = q @ k.mT
        weights = (a * scores + b) * scores + c
        factor = (k.shape[2] / self.head_dim) ** 0.5 if self.scale_output else 1.0
        return factor * weights / weights.sum(-1, keepdim=True)

    def flops(self, height: int, width: int) -> int:
        N, d = height * width, self.head_dim
        linear = crossover(d) < N if self.form == "auto" else self.form == "linear"
        # linear: products of first- and second-order features with [v, 1], of keys and of queries
        head = 2 * N * (d * d + d) * (d + 1) if linear else 2 * N * N * d
        return linear_flops(N, self.qkv, self.proj) + self.num_heads * head

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form={self.form!r}, coefficients={self.coefficients}"
