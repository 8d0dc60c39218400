"""Mega: a moving average along the tokens, then gated attention of a single head, whole or in chunks.

Mega: Moving Average Equipped Gated Attention (ICLR 2023, arXiv 2209.10655). No authors' implementation was compared;
this follows the paper's equations.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.padding import to_pair
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import linear_flops
from zoo.mixers.sequence import SequenceMixer
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


class DampedEMA(nn.Module):
    """Multi-dimensional damped exponential moving average of ``[B, N, C]``, forwards, or in both directions and summed.

    A channel is expanded to h dimensions, each averaged by itself and read together:
    ``u_t = beta x_t``, ``h_t = alpha u_t + (1 - alpha delta) h_{t-1}``, ``y_t = eta . h_t`` (eq. 6). Computed as the
    convolution with ``K_t = sum_h eta alpha beta (1 - alpha delta)^t`` (eq. 7 ff.) by Fourier transforms.

    Args:
        dim: channels C.
        expansion: h.
        bidirectional: also from the end, with parameters of its own.
    """

    def __init__(self, dim: int, expansion: int = 16, bidirectional: bool = True):
        super().__init__()
        if expansion < 1:
            raise ValueError(f"expansion={expansion}: accepted are numbers from 1")
        directions = 2 if bidirectional else 1
        shape = (directions, dim, expansion)
        self.alpha = nn.Parameter(torch.randn(shape) * 0.2)  # logits, as delta: both are between 0 and 1
        self.delta = nn.Parameter(torch.randn(shape) * 0.2)
        signs = 1 - 2.0 * (torch.arange(expansion) % 2)
        self.beta = nn.Parameter(signs + torch.randn(shape) * 0.02)
        self.eta = nn.Parameter(torch.randn(shape) * expansion**-0.5)
        self.no_decay = ("alpha", "delta", "beta", "eta")

    def kernel(self, tokens: int) -> Tensor:
        """K of each direction and channel, ``[1 or 2, C, N]``."""
        alpha, delta = self.alpha.sigmoid(), self.delta.sigmoid()
        log_decay = torch.log1p(-alpha * delta).unsqueeze(-1)  # [directions, C, h, 1]
        # decay^(64 a + b) is a product: far fewer powers, and no tensor of C * h * N
        high = 64 * torch.arange((tokens + 63) // 64, device=alpha.device, dtype=alpha.dtype)
        low = torch.arange(64, device=alpha.device, dtype=alpha.dtype)
        weighted = (self.eta * alpha * self.beta).unsqueeze(-1) * torch.exp(log_decay * high)  # [directions, C, h, a]
        return (weighted.transpose(2, 3) @ torch.exp(log_decay * low)).flatten(2)[..., :tokens]

    def forward(self, x: Tensor) -> Tensor:
        N = x.shape[1]
        real = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        kernel = self.kernel(N).to(real)  # [directions, C, N]
        both = F.pad(kernel[0], (0, N))  # [C, 2N]: twice the length, so that nothing comes round
        if len(kernel) == 2:  # of what comes later: distances -1 to -(N-1) from the end
            both = both + torch.cat([kernel[1, :, :1], F.pad(kernel[1, :, 1:].flip(1), (N, 0))], dim=1)
        spectrum = torch.fft.rfft(x.to(real), n=2 * N, dim=1) * torch.fft.rfft(both.T, dim=0)
        y = torch.fft.irfft(spectrum, n=2 * N, dim=1)
        return y[:, :N].to(x.dtype)

    def flops(self, tokens: int) -> int:
        """``2N log2 2N`` a channel for each of two transforms, and the kernel."""
        directions, dim, expansion = self.alpha.shape
        transforms = 2 * dim * 2 * tokens * max(1, math.ceil(math.log2(2 * tokens)))
        return transforms + directions * dim * expansion * tokens


@register_mixer(name="mega")
class Mega(SequenceMixer):
    """The gated single-head attention of Mega over the tokens in row-major order, prefix first.

    ``X' = EMA(X)``; ``Z = silu(X' W_z)``; ``Q = k_q * Z + m_q``, ``K = k_k * Z + m_k``, ``V = silu(X W_v)``;
    ``O = softmax(Q K^T / sqrt(z) + b) V``; gates ``g = silu(X' W_g)``, ``p = sigmoid(X' W_p)``;
    ``H = silu(X' W_h + (g * O) U_h)``; ``Y = p * H + (1 - p) * X`` (all with biases).

    Args:
        dim: channels C.
        num_heads: without effect but that it must divide ``dim``: the gates make several heads needless (theorem 1).
        input_size: map (H, W) that the biases of distances are made for; for other maps they are interpolated.
        z_dim: channels of queries and keys; None for C / 2.
        v_dim: channels of the values; None for 2 C.
        expansion: dimensions of the moving average.
        bidirectional: average from both ends.
        chunk: attend within chunks of so many tokens only; None for all.

    Source: eq. 6-16, figure 2; chunks: section 3.5. The Laplace attention function (eq. 17) is not among the operators.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        input_size: int | tuple[int, int] = (14, 14),
        z_dim: int | None = None,
        v_dim: int | None = None,
        expansion: int = 16,
        bidirectional: bool = True,
        chunk: int | None = None,
    ):
        super().__init__(dim, num_heads)
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk={chunk}: accepted are numbers from 1, or None for attention of all tokens")
        height, width = to_pair(input_size, "input_size")
        z, v = z_dim or max(1, dim // 2), v_dim or 2 * dim
        self.chunk = chunk
        self.sizes = (z, v, dim, dim)
        self.ema = DampedEMA(dim, expansion, bidirectional)
        self.v = TokenLinear(dim, v)
        self.averaged = TokenLinear(dim, sum(self.sizes))  # W_z, W_g, W_p and W_h side by side
        self.scale = nn.Parameter(torch.ones(2, z) + 0.02 * torch.randn(2, z))  # k_q, k_k
        self.offset = nn.Parameter(torch.zeros(2, z))
        reach = chunk or height * width
        self.distance_bias = nn.Parameter(0.02 * torch.randn(2 * reach - 1))
        self.no_decay = ("scale", "offset", "distance_bias")
        self.gated = TokenLinear(v, dim, bias=False)  # U_h

    def bias(self, tokens: int) -> Tensor:
        """b of all pairs, ``[N, N]``."""
        table: Tensor = self.distance_bias
        if self.chunk is None and table.shape[0] != 2 * tokens - 1:
            if tokens == 1:
                table = table[table.shape[0] // 2][None]
            else:
                table = F.interpolate(table[None, None], size=2 * tokens - 1, mode="linear", align_corners=True)[0, 0]
        place = torch.arange(tokens, device=table.device)
        return table[place[:, None] - place[None, :] + table.shape[0] // 2]

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys ``[B, N, z]``, gates of attention ``[B, N, v]`` and result, ``X' W_h`` (both ``[B, N, C]``)."""
        z, reset, update, hidden = self.averaged(self.ema(tokens)).split(self.sizes, dim=-1)
        z = F.silu(z)
        q, k = z * self.scale[0] + self.offset[0], z * self.scale[1] + self.offset[1]
        return q, k, F.silu(reset), torch.sigmoid(update), hidden

    def mix(self, tokens: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, C]``."""
        q, k, reset, update, hidden = self.parts(tokens)
        read = self._attend(q, k, F.silu(self.v(tokens)))
        new = F.silu(hidden + self.gated(reset * read))
        return update * new + (1 - update) * tokens

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[B, N, v]``; chunks are a batch, the last one padded and its padding hidden."""
        B, N, _ = q.shape
        if self.chunk is None:
            bias = self.bias(N)[None, None].to(q.dtype)
            return dense_attention(q[:, None], k[:, None], v[:, None].to(q.dtype), bias=bias)[:, 0]
        c = self.chunk
        missing = -N % c
        q, k, v = (F.pad(t, (0, 0, 0, missing)).reshape(-1, 1, c, t.shape[2]) for t in (q, k, v.to(q.dtype)))
        real = (torch.arange(N + missing, device=q.device) < N).reshape(1, -1, 1, 1, c)  # [1, chunks, 1, 1, c]
        bias = self.bias(c).to(q.dtype).masked_fill(~real, float("-inf"))  # [1, chunks, 1, c, c]
        bias = bias.expand(B, -1, -1, -1, -1).flatten(0, 1)  # [B * chunks, 1, c, c]
        return dense_attention(q, k, v, bias=bias).reshape(B, N + missing, -1)[:, :N]

    def weights(self, tokens: Tensor) -> Tensor:
        """``[B, 1, N, N]``; rows sum to 1."""
        q, k, *_ = self.parts(tokens)
        N = tokens.shape[1]
        scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        if self.chunk is None:
            return (scores + self.bias(N)).softmax(-1)[:, None]
        place = torch.arange(N, device=tokens.device)
        inside = (place[:, None] // self.chunk) == (place[None, :] // self.chunk)
        bias = self.bias(self.chunk)[place[:, None] % self.chunk, place[None, :] % self.chunk]
        return (scores + bias).masked_fill(~inside, float("-inf")).softmax(-1)[:, None]

    def flops(self, height: int, width: int) -> int:
        N = height * width
        seen = N if self.chunk is None else min(N, self.chunk)
        attention = N * seen * (self.sizes[0] + self.sizes[1])
        return linear_flops(N, self.v, self.averaged, self.gated) + self.ema.flops(N) + attention


@register_mixer(name="mega_chunk")
class MegaChunk(Mega):
    """Mega with attention inside chunks of 64 tokens, whose borders the moving average crosses; see :class:`Mega`."""

    growth = "n log n"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        z_dim: int | None = None,
        v_dim: int | None = None,
        expansion: int = 16,
        bidirectional: bool = True,
        chunk: int = 64,
    ):
        super().__init__(
            dim, num_heads, z_dim=z_dim, v_dim=v_dim, expansion=expansion, bidirectional=bidirectional, chunk=chunk
        )
