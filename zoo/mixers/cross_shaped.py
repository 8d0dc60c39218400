"""Attention in cross-shaped windows: half of the heads in vertical strips, half in horizontal ones.

CSWin Transformer (CVPR 2022, arXiv 2107.00652, eq. 2-8); with agents, Agent-CSWin (arXiv 2312.08874, section 4.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.padding import pad_hwc, to_pair
from zoo.layers.token_linear import TokenLinear
from zoo.layers.windows import window_reverse
from zoo.mixers.agent import AgentCore
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


class SoftmaxCore(nn.Module):
    """Softmax attention of projected queries, keys and values, with the depth-wise branch of the values (LePE)."""

    def __init__(self, dim: int, num_heads: int, qk_scale: float | None = None):
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.dwc = DepthwiseConv(dim, 3)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, H*W, C]`` each, of a map of ``size`` (H, W), to the same."""
        qh, kh, vh = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # [B, heads, H*W, d]
        out = dense_attention(qh, kh, vh, scale=self.scale).transpose(1, 2).flatten(2)
        return out + self.dwc(v.unflatten(1, size)).flatten(1, 2)

    def flops(self, queries: int, keys: int) -> int:
        """Multiply-accumulates of the attention and the convolution for so many positions."""
        return 2 * queries * keys * self.dwc.out_channels + self.dwc.flops(queries)


@register_mixer(name="cross_shaped")
class CrossShapedAttention(Mixer):
    """Attention in strips, by softmax or through agents; the map as a whole where one strip covers it.

    A map that the strips do not tile is padded with zeros at the bottom and right, before the projection.

    Args:
        dim: channels C.
        num_heads: attention heads; even where there are two directions.
        split_size: width of a strip.
        num_agents: agents of a strip, a square number; None for softmax attention.
        input_size: map that position biases are made for, and that decides ``one_branch``.
        one_branch: no strips, all heads over the whole map; by default where one strip covers ``input_size``.
        qkv_bias: bias of the projection to queries, keys and values.
        qk_scale: factor of the softmax logits, ``head_dim ** -0.5`` by default; agents do not heed it.

    Raises:
        ValueError: an odd number of heads with two directions, a strip below 1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        split_size: int = 7,
        num_agents: int | None = None,
        input_size: int | tuple[int, int] = (14, 14),
        one_branch: bool | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
    ):
        super().__init__(dim, num_heads)
        height, width = to_pair(input_size, "input_size")
        if split_size < 1:
            raise ValueError(f"split_size={split_size}: accepted are numbers from 1")
        self.one_branch = (height, width) == (split_size, split_size) if one_branch is None else one_branch
        self.split_size = split_size
        sizes = [(height, width)] if self.one_branch else [(height, split_size), (split_size, width)]
        if num_heads % len(sizes):
            raise ValueError(f"num_heads={num_heads} must be even: half of them attend in vertical strips")
        heads, width_b = num_heads // len(sizes), dim // len(sizes)
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.branches = nn.ModuleList(
            SoftmaxCore(width_b, heads, qk_scale) if num_agents is None else AgentCore(width_b, heads, num_agents, size)
            for size in sizes
        )
        self.proj = TokenLinear(dim, dim)

    def _strips(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of the strips of each branch on a map."""
        if self.one_branch:
            return [(height, width)]
        return [(height, min(self.split_size, width)), (min(self.split_size, height), width)]

    def _padding(self, height: int, width: int) -> tuple[int, int]:
        """What height and width are padded to multiples of."""
        return (1, 1) if self.one_branch else (min(self.split_size, height), min(self.split_size, width))

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        self._check(x, prefix)
        height, width = x.shape[1:3]
        x = pad_hwc(x, self._padding(height, width))
        B, H, W, C = x.shape
        qkv = self.qkv(x).unflatten(-1, (3, len(self.branches), -1))  # [B, H, W, 3, branches, Cb]
        out = []
        for i, (branch, (h, w)) in enumerate(zip(self.branches, self._strips(H, W))):
            part = qkv[..., i, :].unflatten(1, (H // h, h)).unflatten(3, (W // w, w))  # [B, rows, h, columns, w, 3, Cb]
            part = part.permute(5, 0, 1, 3, 2, 4, 6).reshape(3, B * (H // h) * (W // w), h * w, -1)
            mixed = branch(part[0], part[1], part[2], (h, w))  # [B * strips, h*w, Cb]
            out.append(window_reverse(mixed.unflatten(1, (h, w)), H, W))
        mixed = out[0] if self.one_branch else torch.cat(out, dim=-1)
        return self.proj(mixed[:, :height, :width])

    def flops(self, height: int, width: int) -> int:
        rows, columns = self._padding(height, width)
        H, W = height + -height % rows, width + -width % columns
        cores = 0
        for branch, (h, w) in zip(self.branches, self._strips(H, W)):
            if isinstance(branch, (SoftmaxCore, AgentCore)):
                cores += (H * W // (h * w)) * branch.flops(h * w, h * w)
        return linear_flops(H * W, self.qkv) + linear_flops(height * width, self.proj) + cores

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, split_size={self.split_size}, one_branch={self.one_branch}"
