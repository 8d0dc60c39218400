"""Magnitude-aware linear attention with rotated positions, a gate and a local branch; and its softmax counterpart.

Rectifying Magnitude Neglect in Linear Attention (Fan et al., ICCV 2025, arXiv 2507.00698, eq. 8-10).
Authors' code: github.com/qhfan/MALA (no licence file; this follows the paper and recorded results).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention
from zoo_kernels.linear_attention import mala_attention


def rotation_angles(head_dim: int) -> Tensor:
    """Angle that a step along an axis turns each channel of half a head, ``[head_dim / 2]``: both of a pair alike.

    They fall from 1 to 1/10000, both included.

    Raises:
        ValueError: ``head_dim`` is no multiple of 4 (pairs of channels for two axes).
    """
    if head_dim < 4 or head_dim % 4:
        raise ValueError(f"head_dim={head_dim} (dim / num_heads): rotation takes multiples of 4")
    return (1.0 / 10000 ** torch.linspace(0, 1, head_dim // 4)).repeat_interleave(2)


class Rotation(nn.Module):
    """Sines and cosines of the positions of a map: the first half of the channels tells the row, the second the column.

    Args:
        head_dim: channels of a head, a multiple of 4.
        persistent: keep the angles in the state dict, as the authors' checkpoints do.
    """

    angles: Tensor

    def __init__(self, head_dim: int, persistent: bool = False):
        super().__init__()
        self.register_buffer("angles", rotation_angles(head_dim), persistent=persistent)

    def forward(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Sine and cosine, ``[height * width, head_dim]`` each."""
        rows = torch.arange(height, device=self.angles.device)[:, None] * self.angles  # [H, d/2]
        columns = torch.arange(width, device=self.angles.device)[:, None] * self.angles  # [W, d/2]
        angle = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1).flatten(
            0, 1
        )  # [H*W, d]
        return angle.sin(), angle.cos()


def rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Turn the channel pairs (0, 1), (2, 3) ... of ``[B, heads, N, d]`` by the angles of ``[N, d]``."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos.to(x.dtype) + torch.stack((-odd, even), -1).flatten(-2) * sin.to(x.dtype)


class _RotatedAttention(Mixer):
    """What both attentions share: projections, rotation, the convolution of the values, the gate."""

    def __init__(self, dim: int, num_heads: int = 8):
        super().__init__(dim, num_heads)
        self.rotation = Rotation(self.head_dim)
        self.qkvo = TokenLinear(dim, 4 * dim)
        self.lepe = DepthwiseConv(dim, 5)
        self.proj = TokenLinear(dim, dim)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """``[B, heads, H*W, d]`` each, before the rotation, to the same."""
        raise NotImplementedError

    def _heads(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, heads, H*W, d]"""
        return x.flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, prefix: Tensor | None = None, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Mix tokens.

        Args:
            x: ``[B, H, W, C]``.
            prefix: not defined here.
            tables: sine and cosine ``[H*W, head_dim]`` of the positions where they are at hand; see :class:`Rotation`.
        """
        self._check(x, prefix)
        q, k, v, gate = self.qkvo(x).chunk(4, dim=-1)
        sin, cos = self.rotation(x.shape[1], x.shape[2]) if tables is None else tables
        out = self._attend(self._heads(q), self._heads(k), self._heads(v), sin, cos)
        out = out.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3])  # [B, H, W, C]
        return self.proj((out + self.lepe(v)) * gate)

    def _flops(self, positions: int, attention: int) -> int:
        return linear_flops(positions, self.qkvo, self.proj) + self.lepe.flops(positions) + attention


@register_mixer(name="mala")
class MagnitudeAwareAttention(_RotatedAttention):
    """MALA: linear attention whose weights, ``beta_i q'_i . k'_j - gamma_i``, follow the length of the query.

    With phi = elu + 1 and ``z_i = scale * phi(q_i) . mean_j phi(k_j)``: ``beta = 1 + 1/z``, ``gamma = z``, and q', k'
    are phi(q), phi(k) rotated by their positions. A 5 x 5 depth-wise convolution of the values is added, and the sum is
    multiplied by a projection of the input (no activation).

    Args:
        dim: channels C.
        num_heads: attention heads; ``dim / num_heads`` must be a multiple of 4.

    Raises:
        ValueError: another number of channels a head.
    """

    growth = "linear"
    normalised_rows = False

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        return mala_attention(q, k, v, sin=sin, cos=cos)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``(beta_i q'_i . k'_j - gamma_i) / N``, ``[B, heads, H*W, H*W]``: some weights are negative.

        Without rotation rows would sum to 1.
        """
        self._check(x)
        q, k = (F.elu(self._heads(t)) + 1 for t in self.qkvo(x).chunk(4, dim=-1)[:2])
        scale, N = self.head_dim**-0.5, q.shape[2]
        z = scale * q @ k.mean(2, keepdim=True).mT  # [B, heads, N, 1]
        tables = self.rotation(x.shape[1], x.shape[2])
        weights = scale * rotate(q, *tables) @ rotate(k, *tables).mT
        return (weights * (1 + 1 / (z + 1e-6)) - z) / N

    def flops(self, height: int, width: int) -> int:
        N = height * width
        return self._flops(N, 2 * N * self.dim * self.head_dim + N * self.dim)


@register_mixer(name="rotated_softmax")
class RotatedSoftmaxAttention(_RotatedAttention):
    """The softmax attention of MAViT's later stages: rotated queries and keys, convolution and gate as in MALA.

    Args:
        dim: channels C.
        num_heads: attention heads; ``dim / num_heads`` must be a multiple of 4.

    Raises:
        ValueError: another number of channels a head.
    """

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        return dense_attention(rotate(q, sin, cos), rotate(k, sin, cos), v)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``; rows sum to 1."""
        self._check(x)
        tables = self.rotation(x.shape[1], x.shape[2])
        q, k = (rotate(self._heads(t), *tables) for t in self.qkvo(x).chunk(4, dim=-1)[:2])
        return (q @ k.mT * self.head_dim**-0.5).softmax(-1)

    def flops(self, height: int, width: int) -> int:
        N = height * width
        return self._flops(N, 2 * N * N * self.dim)
