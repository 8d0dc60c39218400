"""DaViT's channel-group attention: tokens mix through attention between channels (arXiv:2204.03645, section 3.3)."""

from __future__ import annotations

from torch import Tensor

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.channel_attention import channel_attention


@register_mixer(name="channel")
class ChannelAttention(Mixer):
    """Attention between the channels of a group (head), over all tokens of the map.

    As in the authors' code, ``A = softmax(scale * k^T v)`` over v's channels and the output is ``A q^T``, with the
    scale ``head_dim**-0.5``; the paper's equation 4 has the roles of q, k and v the other way round.

    Args:
        dim: channels C.
        num_heads: groups of channels.
        qkv_bias: whether the projection to queries, keys and values has a bias.
    """

    growth = "linear"

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True):
        super().__init__(dim, num_heads)
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``; raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        B, H, W, C = x.shape
        out = channel_attention(
            x.reshape(B, H * W, C),
            self.qkv.weight,
            self.qkv.bias,
            self.proj.weight,
            self.proj.bias,
            num_heads=self.num_heads,
        )
        return out.reshape(B, H, W, C)

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        return linear_flops(tokens, self.qkv, self.proj) + 2 * tokens * self.dim * self.head_dim
