"""Full softmax attention between all tokens (arXiv:1706.03762, equation 1; as used in ViT, arXiv:2010.11929)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


@register_mixer(name="softmax")
class SoftmaxAttention(Mixer):
    """Multi-head self-attention over the whole map, prefix tokens included.

    Args:
        dim: channels C.
        num_heads: attention heads.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_norm: whether queries and keys are layer-normalised, a head at a time (arXiv:2302.05442).
    """

    takes_prefix = True

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, qk_norm: bool = False):
        super().__init__(dim, num_heads)
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.proj = TokenLinear(dim, dim)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``[B, H, W, C] -> [B, H, W, C]``, with ``prefix`` ``[B, P, C]`` the pair of map and prefix."""
        self._check(x, prefix)
        B, H, W, C = x.shape
        tokens = x.reshape(B, H * W, C)
        if prefix is not None:
            tokens = torch.cat([prefix, tokens], dim=1)
        q, k, v = self._qkv(tokens)
        out_BHND = dense_attention(q, k, v)
        out = self.proj(out_BHND.transpose(1, 2).reshape(B, -1, C))
        if prefix is None:
            return out.reshape(B, H, W, C)
        P = prefix.shape[1]
        return out[:, P:].reshape(B, H, W, C), out[:, :P]

    def _qkv(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, N, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(B, N, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, head_dim] each
        return self.q_norm(q), self.k_norm(k), v

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        return linear_flops(tokens, self.qkv, self.proj) + 2 * tokens * tokens * self.dim

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``, rows sum to 1."""
        self._check(x)
        q, k, _ = self._qkv(x.flatten(1, 2))
        return (self.head_dim**-0.5 * q @ k.transpose(-1, -2)).softmax(-1)
