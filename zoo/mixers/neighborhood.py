"""Neighborhood attention: every position attends to the positions nearest to it, with or without dilation.

NAT: Neighborhood Attention Transformer (CVPR 2023, arXiv 2204.07143, eq. 1-4); DiNAT: Dilated Neighborhood Attention
Transformer (arXiv 2209.15001, eq. 1-4). Authors' code: github.com/SHI-Labs/Neighborhood-Attention-Transformer (MIT).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.padding import to_pair
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops, row_normalised
from zoo.registry import register_mixer
from zoo_kernels.neighborhood_attention import neighborhood_attention


@register_mixer(name="neighborhood")
class NeighborhoodAttention(Mixer):
    """Multi-head attention of each position to the ``kernel_size`` nearest positions of its dilation group.

    At a border the window moves inside, so that every position sees equally many. A map smaller than ``kernel_size *
    dilation`` is padded with zeros at the bottom and right; padded positions are attended, as in natten 0.14, which the
    authors' models were trained with.

    Args:
        dim: channels C.
        num_heads: attention heads.
        kernel_size: positions along each side of the window, one number or (height, width).
        dilation: distance between the positions of a window, one number or (height, width).
        qkv_bias: whether the projection to queries, keys and values has a bias.
        rel_pos_bias: whether a learned bias for each offset (in steps of the dilation) is added to the logits.
        qk_scale: factor of the logits; ``head_dim ** -0.5`` by default.

    Raises:
        ValueError: ``kernel_size`` or ``dilation`` is no positive number.
    """

    growth = "linear"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int | tuple[int, int] = 7,
        dilation: int | tuple[int, int] = 1,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        qk_scale: float | None = None,
    ):
        super().__init__(dim, num_heads)
        self.kernel = to_pair(kernel_size, "kernel_size")
        self.dilation = to_pair(dilation, "dilation")
        self.scale = qk_scale or self.head_dim**-0.5
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.rpb: nn.Parameter | None = None
        if rel_pos_bias:
            self.rpb = nn.Parameter(torch.empty(num_heads, 2 * self.kernel[0] - 1, 2 * self.kernel[1] - 1))
            nn.init.trunc_normal_(self.rpb, std=0.02)
            self.no_decay = ("rpb",)
        self.proj = TokenLinear(dim, dim)

    def _padded(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` with zeros at the bottom and right up to the extent of a window."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        bottom, right = max(0, kh * dh - x.shape[1]), max(0, kw * dw - x.shape[2])
        return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``; raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        height, width = x.shape[1:3]
        q, k, v = self.qkv(self._padded(x)).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(3)
        out = neighborhood_attention(
            q, k, v, kernel_size=self.kernel, dilation=self.dilation, bias=self.rpb, scale=self.scale
        )
        return self.proj(out[:, :height, :width].flatten(3))  # [B, H, W, heads, d] -> [B, H, W, C]

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: zero outside the window; what padded positions took is shared out over the row."""
        self._check(x)
        H, W = x.shape[1:3]
        q, k, _ = self.qkv(self._padded(x)).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(3)
        B, Hp, Wp = q.shape[:3]
        # With the values one-hot by position the output is the attention itself.
        places = torch.eye(Hp * Wp, dtype=q.dtype, device=q.device).view(1, Hp, Wp, 1, Hp * Wp)
        maps = neighborhood_attention(
            q,
            k,
            places.expand(B, -1, -1, self.num_heads, -1),
            kernel_size=self.kernel,
            dilation=self.dilation,
            bias=self.rpb,
            scale=self.scale,
            backend="reference",
        )
        maps = maps.permute(0, 3, 1, 2, 4).unflatten(-1, (Hp, Wp))[:, :, :H, :W, :H, :W]
        return row_normalised(maps.reshape(B, self.num_heads, H * W, H * W))

    def flops(self, height: int, width: int) -> int:
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        tokens = max(height, kh * dh) * max(width, kw * dw)
        return (
            linear_flops(tokens, self.qkv) + 2 * tokens * kh * kw * self.dim + linear_flops(height * width, self.proj)
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel={self.kernel}, dilation={self.dilation}"
