"""Extractors: learned weights of the distance between tokens extract, a product with the token itself adjusts.

Attention Is Not All You Need Anymore (arXiv 2308.07661), the four types SHE, HE, WE and ME. The authors' code was not
compared; which equations these are is said at :class:`Extractor`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.padding import to_pair
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.mixers.sequence import SequenceMixer
from zoo.registry import register_mixer

#: what the weight of a distance is: a matrix, a factor for each channel, or a factor for each head
KINDS = ("matrix", "channel", "head")


def distance_sum(x: Tensor, weight: Tensor, causal: bool) -> Tensor:
    """``out_t = sum_s w_{t - s} x_s`` by Fourier transforms, a channel at a time.

    Args:
        x: ``[B, N, C]``.
        weight: ``[C, 2N - 1]`` for the distances -(N-1) to N-1, or with ``causal`` ``[C, N]`` for 0 to N-1.
        causal: whether a token reads only those before it and itself.
    """
    N = x.shape[1]
    real = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    size = 2 * N  # no distance comes round
    kernel = weight.to(real)
    if not causal:  # distances 0 to N-1, an unused one, then -(N-1) to -1
        kernel = torch.cat([kernel[:, N - 1 :], kernel.new_zeros(kernel.shape[0], 1), kernel[:, : N - 1]], dim=1)
    spectrum = torch.fft.rfft(x.to(real), n=size, dim=1) * torch.fft.rfft(kernel, n=size, dim=1).T
    return torch.fft.irfft(spectrum, n=size, dim=1)[:, :N].to(x.dtype)


class Extractor(SequenceMixer):
    """``y_t = (sum_s w_{t - s}(x_s) + b) * (x_t W_adj + b_adj)``, over the tokens in row-major order, prefix first.

    The sum extracts, the second factor adjusts (elementwise). The types differ in the weight of a distance:

    ==== ================================================================================================
    SHE  a matrix: ``w_o(x) = x W_o``
    HE   a factor for each channel, behind one matrix: ``w_o(x) = w_o * (x W_ext)``
    WE   a factor for each head, behind one matrix
    ME   a factor for each head, no matrix: ``w_o(x) = w_o x``
    ==== ================================================================================================

    This is the paper's structure (extraction by distance, then adjustment, in four steps of cost); that each step takes
    exactly these weights away is our reading and was not checked against the authors' text. The paper's sum is over
    what came before (``causal=True``); images have no order, so that by default it is over all tokens.

    Args:
        dim: channels C.
        num_heads: groups of channels that share a factor, where the type has those.
        input_size: map (H, W) that the weights are made for; for other maps they are interpolated over distance.
        causal: extract only from the tokens before and the token itself.

    Source: section 4.
    """

    weight_kind = "matrix"
    projects = False

    def __init__(
        self, dim: int, num_heads: int = 8, input_size: int | tuple[int, int] = (14, 14), causal: bool = False
    ):
        super().__init__(dim, num_heads)
        height, width = to_pair(input_size, "input_size")
        self.causal = causal
        reach = height * width
        distances = reach if causal else 2 * reach - 1
        rows = {"matrix": dim * dim, "channel": dim, "head": num_heads}[self.weight_kind]
        self.weight = nn.Parameter(torch.empty(rows, distances))  # "matrix": output channel first, then input channel
        self.no_decay = () if self.weight_kind == "matrix" else ("weight",)
        nn.init.normal_(self.weight, std=(reach * (dim if self.weight_kind == "matrix" else 1)) ** -0.5)
        self.extract = TokenLinear(dim, dim, bias=False) if self.projects else None
        self.bias = nn.Parameter(torch.zeros(dim))
        self.adjust = TokenLinear(dim, dim)

    def distance_weight(self, tokens: int) -> Tensor:
        """The weights for so many tokens: ``[rows, N]`` (causal) or ``[rows, 2N - 1]``."""
        size = tokens if self.causal else 2 * tokens - 1
        if size == self.weight.shape[1]:
            return self.weight
        if size == 1:  # the distance 0
            middle = 0 if self.causal else self.weight.shape[1] // 2
            return self.weight[:, middle : middle + 1]
        return F.interpolate(self.weight[None], size=size, mode="linear", align_corners=True)[0]

    def mix(self, tokens: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, C]``."""
        N, C = tokens.shape[1:]
        weight = self.distance_weight(N)
        if self.weight_kind == "matrix":
            # a convolution is a correlation: its kernel runs from the largest distance down
            kernel = weight.reshape(C, C, -1).flip(2)
            padded = F.pad(tokens.transpose(1, 2), (N - 1, 0 if self.causal else N - 1))  # [B, C, 2N-1 or 3N-2]
            extracted = F.conv1d(padded, kernel.to(tokens.dtype)).transpose(1, 2)
        else:
            values = tokens if self.extract is None else self.extract(tokens)
            if self.weight_kind == "head":
                weight = weight.repeat_interleave(self.head_dim, dim=0)
            extracted = distance_sum(values, weight, self.causal)
        return (extracted + self.bias) * self.adjust(tokens)

    attention_map = Mixer.attention_map  # the weights are of distances, there is no matrix of positions

    def flops(self, height: int, width: int) -> int:
        """Projections, and the sums: by all pairs of tokens for SHE, ``N log2 N`` a channel and transform otherwise."""
        N = height * width
        if self.weight_kind == "matrix":
            pairs = N * (N + 1) // 2 if self.causal else N * N
            return linear_flops(N, self.adjust) + pairs * self.dim * self.dim
        transforms = 2 * self.dim * 2 * N * max(1, math.ceil(math.log2(2 * N)))
        return linear_flops(N, self.extract, self.adjust) + transforms


@register_mixer(name="extractor_she")
class SuperHighPerformanceExtractor(Extractor):
    """SHE: a matrix for each distance; see :class:`Extractor`."""

    growth = "quadratic"


@register_mixer(name="extractor_he")
class HigherPerformanceExtractor(Extractor):
    """HE: a factor for each distance and channel, behind one matrix; see :class:`Extractor`."""

    growth, weight_kind, projects = "n log n", "channel", True


@register_mixer(name="extractor_we")
class WorthwhileExtractor(Extractor):
    """WE: a factor for each distance and head, behind one matrix; see :class:`Extractor`."""

    growth, weight_kind, projects = "n log n", "head", True


@register_mixer(name="extractor_me")
class MinimalistExtractor(Extractor):
    """ME: a factor for each distance and head, no matrix; see :class:`Extractor`."""

    growth, weight_kind = "n log n", "head"
