"""Gaussian adaptive attention: features are weighted by how they lie in a learned Gaussian of their channel.

Gaussian Adaptive Attention is All You Need: Robust Contextual Representations Across Multiple Modalities (arXiv
2401.11143). This follows the paper's equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.mixers.sequence import SequenceMixer
from zoo.registry import register_mixer

BLOCK = 1 << 17  # numbers of a block of tokens, outside torch.compile and torch.export


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: a difference of a feature and a mean loses its digits in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@register_mixer(name="gaussian_adaptive")
class GaussianAdaptiveAttention(SequenceMixer):
    """Each feature times ``prod_k exp(-y_k^2 / (2 xi_k^2))`` with ``y_k = (x - mean - delta_k) / sqrt(var + eps)``.

    Mean and variance of a channel are taken over all tokens, which is the only way tokens act on each other; offsets
    delta and widths xi are learned for each head and Gaussian. There is no matrix between positions.

    Args:
        dim: channels C.
        num_heads: heads; each has its own Gaussians for its C / heads channels.
        num_gaussians: Gaussians K of a head, multiplied.
        initial_width: where xi starts.
        normalise: divide the weights by their sum over the tokens, as a distribution.
        eps: added to the variance.

    Raises:
        ValueError: ``num_gaussians`` below 1, ``initial_width`` or ``eps`` not above 0.

    Source: the equations of the mean, variance, shifted mean, normalised feature and Gaussian; then the
    heads are concatenated and projected.
    """

    growth = "linear"
    normalised_rows = False
    attention_map = Mixer.attention_map

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        num_gaussians: int = 2,
        initial_width: float = 2.0,
        normalise: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__(dim, num_heads)
        if num_gaussians < 1:
            raise ValueError(f"num_gaussians={num_gaussians}: accepted are numbers from 1")
        if initial_width <= 0 or eps <= 0:
            raise ValueError(f"initial_width={initial_width}, eps={eps}: accepted are numbers above 0")
        self.normalise = normalise
        self.eps = eps
        self.offset = nn.Parameter(torch.zeros(num_gaussians, num_heads, 1))  # delta
        self.width = nn.Parameter(torch.full((num_gaussians, num_heads, 1), float(initial_width)))  # xi
        self.no_decay = ("offset", "width")
        self.proj = TokenLinear(dim, dim)

    def mix(self, tokens: Tensor) -> Tensor:
        # Blocks of tokens stay in the cache, where whole maps of a large image would each be written and read again.
        step = tokens.shape[1]
        if not torch.compiler.is_compiling():
            step = max(1, BLOCK // max(1, tokens.shape[0] * self.dim))
        blocks = tokens.split(step, dim=1)
        scale, shift, rest = self._gaussian(blocks, tokens.shape[1])
        powers = (torch.addcmul(scale * rest, scale, (_wide(t) + shift).square()) for t in blocks)
        if self.normalise:
            weights: Any = torch.cat(list(powers), dim=1).softmax(1).split(step, dim=1)
        else:
            weights = (power.exp() for power in powers)
        mixed = [self.proj((t * w).to(t.dtype)) for t, w in zip(blocks, weights)]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)

    def _gaussian(self, blocks: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The K Gaussians of each channel as one, ``exp(scale * ((x + shift)^2 + rest))``: ``[B, 1, C]``, ``[C]``.

        A product of Gaussians has the sum of their precisions, the mean of their offsets weighted by these, and a
        constant factor.
        """
        wide = [_wide(t) for t in blocks]
        mean = sum(t.sum(1, keepdim=True) for t in wide) / count
        variance = sum((t - mean).square().sum(1, keepdim=True) for t in wide) / count
        precision = self.width.square().reciprocal()  # [K, h, 1]
        total = precision.sum(0)  # [h, 1]
        offset = (precision * self.offset).sum(0) / total
        rest = (precision * (self.offset - offset).square()).sum(0) / total
        total, offset, rest = (t.expand(-1, self.head_dim).flatten() for t in (total, offset, rest))  # [C]
        return -0.5 * total / (variance + self.eps), -(mean + offset), rest

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        # mean and variance, the square, its scale and the final product of each feature
        return linear_flops(tokens, self.proj) + 5 * tokens * self.dim

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_gaussians={self.offset.shape[0]}, normalise={self.normalise}"
