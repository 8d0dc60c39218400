"""Spectral mixing: tokens are filtered in the frequency domain, by filters that follow the image.

The FFT Strikes Back: An Efficient Alternative to Self-Attention (FFTNet, arXiv 2502.18394), as in the authors' ImageNet
code (github.com/jacobfa/fft, no licence; this follows the paper and recorded results). Where the activation of a
frequency in the paper is modReLU, in the code, and here, it is the GELU of its magnitude.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.padding import to_pair
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer


def resized_bins(table: Tensor, bins: int) -> Tensor:
    """A table over frequencies ``[..., F, 1]`` from 0 to one half a token, read at ``bins`` of them (linearly)."""
    if table.shape[-2] == bins:
        return table
    rows = table.reshape(1, -1, table.shape[-2])  # [1, rows, F]
    return F.interpolate(rows, size=bins, mode="linear", align_corners=True).reshape(*table.shape[:-2], bins, 1)


@register_mixer(name="fft")
class FFTMixer(Mixer):
    """``irfft(g(rfft(x) * w + b))`` along the tokens: ``w`` and ``b`` of each head and frequency, adapted to the image.

    ``w = w0 (1 + s)`` and ``b = b0 + t``, where an MLP of the mean token gives ``s`` and ``t``; ``g`` keeps the phase
    of a frequency and replaces its magnitude m by ``m * gelu(m) / (m + 1e-6)``. Both transforms are orthonormal.

    Args:
        dim: channels C.
        num_heads: groups of channels that share a filter.
        input_size: map (H, W) that the filters are made for; for other maps they are interpolated over frequency.
        num_prefix: prefix tokens that the filters are made for besides.
        adaptive: whether the filters follow the image.
        dropout: of the result.

    Source: section 3 of the paper, and the authors' ``MultiHeadSpectralAttention`` without its norm and residual sum.
    """

    growth = "n log n"
    takes_prefix = True

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        input_size: int | tuple[int, int] = (14, 14),
        num_prefix: int = 0,
        adaptive: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__(dim, num_heads)
        height, width = to_pair(input_size, "input_size")
        self.bins = (height * width + num_prefix) // 2 + 1
        self.base_filter = nn.Parameter(torch.ones(num_heads, self.bins, 1))
        self.base_bias = nn.Parameter(torch.full((num_heads, self.bins, 1), -0.1))
        self.no_decay = ("base_filter", "base_bias")
        self.adapt1 = TokenLinear(dim, dim) if adaptive else None
        self.adapt2 = TokenLinear(dim, num_heads * self.bins * 2) if adaptive else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``[B, H, W, C] -> [B, H, W, C]``, with ``prefix`` ``[B, P, C]`` the pair of map and prefix."""
        self._check(x, prefix)
        size, tokens = x.shape[1:3], x.flatten(1, 2)
        if prefix is None:
            return self.forward_tokens(tokens).unflatten(1, size)
        P = prefix.shape[1]
        out = self.forward_tokens(torch.cat([prefix, tokens], dim=1))
        return out[:, P:].unflatten(1, size), out[:, :P]

    def forward_tokens(self, tokens: Tensor) -> Tensor:
        """The same on a sequence ``[B, N, C]``, prefix first."""
        B, N, C = tokens.shape
        filters, bias = self.filters(tokens)  # [B or 1, heads, F, 1] each
        # Fourier transforms of half precision are not defined everywhere
        real = tokens if tokens.dtype in (torch.float32, torch.float64) else tokens.float()
        signal = real.reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)  # [B, heads, N, d]
        spectrum = torch.fft.rfft(signal, dim=2, norm="ortho") * filters + bias  # [B, heads, F, d]
        magnitude = spectrum.abs()
        spectrum = spectrum * (F.gelu(magnitude) / (magnitude + 1e-6))
        out = torch.fft.irfft(spectrum, n=N, dim=2, norm="ortho").transpose(1, 2).reshape(B, N, C)
        return self.dropout(out.to(tokens.dtype))

    def filters(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Filter and bias of each image, head and frequency of ``[B, N, C]``: ``[B or 1, heads, N // 2 + 1, 1]``."""
        bins = tokens.shape[1] // 2 + 1
        filters, bias = resized_bins(self.base_filter, bins)[None], resized_bins(self.base_bias, bins)[None]
        if self.adapt1 is None or self.adapt2 is None:
            return filters, bias
        change = self.adapt2(F.gelu(self.adapt1(tokens.mean(1)))).to(filters.dtype)
        change = change.reshape(-1, self.num_heads, self.bins, 2)
        scale, shift = (resized_bins(c, bins) for c in change.split(1, dim=-1))  # [B, heads, F, 1] each
        return filters * (1 + scale), bias + shift

    def flops(self, height: int, width: int) -> int:
        """Of both transforms ``N log2 N`` a channel each, of the filters, and of the MLP (once an image)."""
        tokens = height * width
        transforms = 2 * self.dim * tokens * max(1, math.ceil(math.log2(max(2, tokens))))
        return transforms + 2 * self.dim * (tokens // 2 + 1) + linear_flops(1, self.adapt1, self.adapt2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bins={self.bins}"
