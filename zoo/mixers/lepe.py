"""Full attention with locally enhanced position encoding (LePE): a depth-wise convolution beside the softmax.

LePE: CSWin Transformer (CVPR 2022, arXiv 2107.00652, eq. 8); as in the last stage of BiFormer (arXiv 2303.08810).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


@register_mixer(name="lepe_attention")
class LePEAttention(Mixer):
    """Softmax attention over all positions plus a depth-wise convolution, then the output projection.

    Args:
        dim: channels C.
        num_heads: attention heads (8 in BiFormer, whatever the width).
        qkv_bias: bias of the projection to queries, keys and values.
        qk_scale: factor of the logits; ``head_dim ** -0.5`` by default.
        side_dwconv: kernel of the convolution; 0 for plain attention.
        lepe_input: what is convolved, the values "v" or the mixer's input "x" (as BiFormer's released models do).

    Raises:
        ValueError: ``lepe_input`` is neither "v" nor "x".
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        side_dwconv: int = 5,
        lepe_input: str = "v",
    ):
        super().__init__(dim, num_heads)
        if lepe_input not in ("v", "x"):
            raise ValueError(f"lepe_input={lepe_input!r}: accepted are 'v' and 'x'")
        self.scale = qk_scale or self.head_dim**-0.5
        self.lepe_input = lepe_input
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim)
        self.lepe = DepthwiseConv(dim, side_dwconv) if side_dwconv > 0 else None

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        self._check(x, prefix)
        B, H, W, C = x.shape
        qkv = self.qkv(x)  # [B, H, W, 3C]
        q, k, v = qkv.reshape(B, H * W, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        out = dense_attention(q, k, v, scale=self.scale)  # [B, heads, H*W, d]
        out = out.transpose(1, 2).reshape(B, H, W, C)
        if self.lepe is not None:
            out = out + self.lepe(x if self.lepe_input == "x" else qkv[..., 2 * C :])
        return self.proj(out)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        self._check(x)
        B, H, W, _ = x.shape
        q, k, _ = self.qkv(x).reshape(B, H * W, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return (q @ k.transpose(-1, -2) * self.scale).softmax(-1)

    @torch.no_grad()
    def attention_values(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, d]``"""
        self._check(x)
        return self.qkv(x.flatten(1, 2))[..., 2 * self.dim :].unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def flops(self, height: int, width: int) -> int:
        N = height * width
        lepe = 0 if self.lepe is None else self.lepe.flops(N)
        return linear_flops(N, self.qkv, self.proj) + 2 * N * N * self.dim + lepe
