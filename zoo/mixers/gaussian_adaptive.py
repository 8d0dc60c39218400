"""Gaussian adaptive attention: features are weighted by how they lie in a learned Gaussian of their channel.

Gaussian Adaptive Attention is All You Need: Robust Contextual Representations Across Multiple Modalities (arXiv
2401.11143). This follows the paper's equations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.mixers.base import Mixer, linear_flops
from zoo.mixers.sequence import SequenceMixer
from zoo.registry import register_mixer


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

    Source: the equations of the mean, variance, shifted mean, normalised feature and Gaussian of section 3; then the
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
        self.proj = nn.Linear(dim, dim)

    def gaussians(self, tokens: Tensor) -> Tensor:
        """Weights ``[B, N, C]`` of the features, between 0 and 1, of tokens ``[B, N, C]``."""
        # In float32 at least: a difference of a feature and a mean loses its digits in half precision.
        x = tokens.float() if tokens.dtype in (torch.float16, torch.bfloat16) else tokens
        x = x.unflatten(2, (self.num_heads, -1))  # [B, N, h, d]
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        centred = (x - mean).unsqueeze(1) - self.offset[:, None]  # [B, K, N, h, d]
        squares = centred.square() / (variance.unsqueeze(1) + self.eps)
        power = -0.5 * (squares / self.width[:, None].square()).sum(1).flatten(2)  # [B, N, C]
        return power.softmax(1) if self.normalise else power.exp()

    def mix(self, tokens: Tensor) -> Tensor:
        return self.proj((tokens * self.gaussians(tokens)).to(tokens.dtype))

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        # mean, variance and the final product; three products for each Gaussian
        return linear_flops(tokens, self.proj) + tokens * self.dim * (3 + 3 * self.offset.shape[0])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_gaussians={self.offset.shape[0]}, normalise={self.normalise}"
