"""InLine attention: linear attention made injective, with a local residual that the image itself predicts.

Bridging the Divide: Reconsidering Softmax and Linear Attention (Han et al., NeurIPS 2024, arXiv 2412.06590, eq. 5).
Authors' code: github.com/LeapLabTHU/InLine (no licence file; this follows the paper and recorded results).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.linear_attention import inline_attention

FEATURE_MAPS = ("identity", "relu", "leaky_relu", "exp")

#: positions up to which a CPU convolves all images of a batch at once, each with its own weights
GROUPED = 256


def features(x: Tensor, feature_map: str) -> Tensor:
    """The elementwise maps: max(x, 0), with a slope of 0.01 below 0, ``exp(0.2 x)``, or x itself."""
    if feature_map == "relu":
        return x.relu()
    if feature_map == "leaky_relu":
        return F.leaky_relu(x)
    return (0.2 * x).exp() if feature_map == "exp" else x


class PredictedConv(nn.Module):
    """A 3 x 3 depth-wise convolution whose weights come, for each image, from one vector; zeros outside the map.

    Args:
        dim: channels C.
        num_heads: groups of the two layers that predict the weights.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.dim = dim
        self.fc1 = nn.Conv1d(dim, dim, 1, groups=num_heads)
        self.act = nn.GELU()
        self.fc2 = nn.Conv1d(dim, 9 * dim, 1, groups=num_heads)

    def forward(self, x: Tensor, summary: Tensor) -> Tensor:
        """``x [B, H, W, C]`` and ``summary [B, C]`` to ``[B, H, W, C]``."""
        B, H, W, C = x.shape
        weight = self.fc2(self.act(self.fc1(summary.unsqueeze(-1))))  # [B, C * 9, 1], taps row by row
        maps = x.permute(0, 3, 1, 2)
        if x.is_cuda or torch.compiler.is_compiling() or (B > 1 and H * W <= GROUPED):
            maps = maps.reshape(1, B * C, H, W)
            out = F.conv2d(maps, weight.reshape(B * C, 1, 3, 3), padding=1, groups=B * C)
            return out.reshape(B, C, H, W).permute(0, 2, 3, 1)
        # On a CPU, large maps image by image: channels stay last and nothing is copied.
        weights = weight.reshape(B, C, 1, 3, 3)
        return torch.cat([F.conv2d(maps[b : b + 1], weights[b], padding=1, groups=C) for b in range(B)]).permute(
            0, 2, 3, 1
        )

    def flops(self, positions: int) -> int:
        """Multiply-accumulates over ``positions`` positions, prediction included."""
        return self.fc1.weight.numel() + self.fc2.weight.numel() + 9 * self.dim * positions


@register_mixer(name="inline")
class InLineAttention(Mixer):
    """``sum_j (s q_i . k_j - mean_j(s q_i . k_j) + 1) v_j / N`` plus the predicted convolution of the values.

    The weights of a row sum to 1 by subtraction instead of division, so different queries have different weights;
    s = ``head_dim ** -0.5``.

    Args:
        dim: channels C.
        num_heads: attention heads.
        feature_map: what queries and keys pass through: "identity", "relu", "leaky_relu" or "exp" (of 0.2 x).
        qkv_bias: bias of the projections to queries, keys and values.
        takes_prefix: define prefix tokens (a class token): they attend and are attended and count in the mean that
            predicts the convolution, but are not convolved.
        separate_projections: queries apart from keys and values, as in PVT.
        lepe: a learned 3 x 3 depth-wise convolution of the values besides, as in CSWin.

    Raises:
        ValueError: another feature map.
    """

    growth = "linear"
    normalised_rows = False

    qkv: nn.Linear | None
    q: nn.Linear
    kv: nn.Linear

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        feature_map: str = "identity",
        qkv_bias: bool = True,
        takes_prefix: bool = False,
        separate_projections: bool = False,
        lepe: bool = False,
    ):
        super().__init__(dim, num_heads)
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map={feature_map!r}: accepted are {', '.join(map(repr, FEATURE_MAPS))}")
        self.feature_map = feature_map
        self.takes_prefix = takes_prefix
        if separate_projections:
            self.qkv = None
            self.q = TokenLinear(dim, dim, bias=qkv_bias)
            self.kv = TokenLinear(dim, 2 * dim, bias=qkv_bias)
        else:
            self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.residual = PredictedConv(dim, num_heads)
        self.lepe = DepthwiseConv(dim, 3) if lepe else None
        self.proj = TokenLinear(dim, dim)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        self._check(x, prefix)
        size = (x.shape[1], x.shape[2])
        tokens = x.flatten(1, 2)
        if prefix is None:
            return self.forward_tokens(tokens, size).unflatten(1, size)
        P = prefix.shape[1]
        out = self.forward_tokens(torch.cat([prefix, tokens], dim=1), size, P)
        return out[:, P:].unflatten(1, size), out[:, :P]

    def _project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, C] -> q, k (after the feature map) and v, [B, N, C] each"""
        if self.qkv is not None:
            q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        else:
            q, (k, v) = self.q(tokens), self.kv(tokens).chunk(2, dim=-1)
        return features(q, self.feature_map), features(k, self.feature_map), v

    def _heads(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, heads, N, d]"""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward_tokens(
        self, tokens: Tensor, size: tuple[int, int], prefix: int = 0, summary: Tensor | None = None
    ) -> Tensor:
        """The same on ``[B, P + H*W, C]``: ``prefix`` = P tokens, then the map of ``size`` (H, W), row-major.

        ``summary [B, C]`` predicts the convolution's weights; by default the mean of the tokens.
        """
        q, k, v = self._project(tokens)
        out = inline_attention(self._heads(q), self._heads(k), self._heads(v))
        out = out.transpose(1, 2).flatten(2)  # [B, P + H*W, C]
        v_map = v[:, prefix:].unflatten(1, size)  # [B, H, W, C]
        local = self.residual(v_map, tokens.mean(1) if summary is None else summary)
        if self.lepe is not None:
            local = local + self.lepe(v_map)
        local = local.flatten(1, 2)
        if prefix:
            return self.proj(torch.cat([out[:, :prefix], out[:, prefix:] + local], dim=1))
        return self.proj(out + local)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """The weights of the attention alone, ``[B, heads, H*W, H*W]``: rows sum to 1, some weights are negative."""
        self._check(x)
        q, k, _ = self._project(x.flatten(1, 2))
        scores = self._heads(q) @ self._heads(k).mT * self.head_dim**-0.5
        return (scores - scores.mean(-1, keepdim=True) + 1) / scores.shape[-1]

    def flops(self, height: int, width: int) -> int:
        N = height * width
        projections = linear_flops(N, *((self.qkv,) if self.qkv is not None else (self.q, self.kv)), self.proj)
        local = self.residual.flops(N) + (0 if self.lepe is None else self.lepe.flops(N))
        return projections + 2 * N * self.dim * self.head_dim + local

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, feature_map={self.feature_map!r}"
