"""MSA-Conv: self-attention inside the window of a convolution, zero padding included.

TiC: Exploring Vision Transformer in Convolution (arXiv 2310.04134, section 3). Authors' code:
github.com/zs670980918/MSA-Conv (no licence file; this follows the paper and recorded results).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops, row_normalised
from zoo.registry import register_mixer
from zoo_kernels.neighborhood_attention import neighborhood_attention


@register_mixer(name="msa_conv")
class MSAConvAttention(Mixer):
    """Each position attends to the positions that a dilated convolution around it would see.

    Unlike neighborhood attention the window never moves: what lies outside the map is a key and value of zero, which
    takes its share of the softmax, as in the authors' formulation.

    Args:
        dim: channels C.
        num_heads: attention heads; the authors' operator has one.
        kernel_size: side of the window, an odd number.
        dilation: distance between the positions of a window.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_scale: factor of the logits; ``head_dim ** -0.5`` by default.
        proj: whether a linear layer follows; the authors' operator has a convolution there (:class:`MSAConv2d`).

    Raises:
        ValueError: ``kernel_size`` is even or below 1, or ``dilation`` below 1.
    """

    growth = "linear"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        kernel_size: int = 3,
        dilation: int = 1,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj: bool = True,
    ):
        super().__init__(dim, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: accepted are odd numbers from 1, which keep the map's size")
        if dilation < 1:
            raise ValueError(f"dilation={dilation}: accepted are numbers from 1")
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.scale = qk_scale or self.head_dim**-0.5
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim) if proj else nn.Identity()

    def _padded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values ``[B, r + H + r', r + W + r', heads, d]`` with zeros outside the map.

        With r positions added on each side every window of the map lies inside, so that neighborhood attention, whose
        windows move at the border, leaves them where they are. Small maps get more, for one whole window.
        """
        k, d = self.kernel_size, self.dilation
        r = d * (k - 1) // 2
        bottom, right = (r + max(0, k * d - n - 2 * r) for n in x.shape[1:3])
        qkv = F.pad(self.qkv(x), (0, 0, r, right, r, bottom))
        q, key, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(3)
        return q, key, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, height: int, width: int, backend: str = "auto") -> Tensor:
        """Attention of padded maps, cropped to the map: ``[B, H, W, heads, dv]``."""
        r = self.dilation * (self.kernel_size - 1) // 2
        out = neighborhood_attention(
            q, k, v, kernel_size=self.kernel_size, dilation=self.dilation, scale=self.scale, backend=backend
        )
        return out[:, r : r + height, r : r + width]

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``; raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        return self.proj(self._attend(*self._padded(x), x.shape[1], x.shape[2]).flatten(3))

    @torch.no_grad()
    def window_weights(self, x: Tensor) -> Tensor:
        """The attention inside each window, ``[B, heads, H, W, k*k]`` (row by row), zero padding included."""
        self._check(x)
        q, k, _ = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(3)  # [B, H, W, heads, d]
        q = q.permute(0, 3, 1, 2, 4)
        planes = k.permute(0, 3, 4, 1, 2).flatten(1, 2)  # [B, C, H, W]
        reach = self.dilation * (self.kernel_size - 1) // 2
        keys = F.unfold(planes, self.kernel_size, self.dilation, reach)  # [B, C*k*k, H*W]
        keys = keys.reshape(x.shape[0], self.num_heads, self.head_dim, -1, x.shape[1], x.shape[2])
        return (self.scale * torch.einsum("bhyxd,bhdnyx->bhyxn", q, keys)).softmax(-1)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: zero outside the window; what zero padding took is shared out over the row."""
        self._check(x)
        H, W = x.shape[1:3]
        q, k, _ = self._padded(x)
        B, Hp, Wp = q.shape[:3]
        r = self.dilation * (self.kernel_size - 1) // 2
        # With the values one-hot by position the output is the attention itself.
        places = torch.eye(Hp * Wp, dtype=q.dtype, device=q.device).view(1, Hp, Wp, 1, Hp * Wp)
        places = places.expand(B, -1, -1, self.num_heads, -1)
        maps = self._attend(q, k, places, H, W, backend="reference").permute(0, 3, 1, 2, 4).unflatten(-1, (Hp, Wp))
        return row_normalised(maps[..., r : r + H, r : r + W].reshape(B, self.num_heads, H * W, H * W))

    def flops(self, height: int, width: int) -> int:
        N = height * width
        return linear_flops(N, self.qkv, self.proj) + 2 * N * self.kernel_size**2 * self.dim

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}, dilation={self.dilation}"


class MSAConv2d(nn.Module):
    """The authors' layer: attention in the window added to its input, a convolution, ReLU.

    Args:
        in_channels, out_channels: channels.
        kernel_size: of the attention and of the convolution, an odd number.
        stride, padding, bias: of the convolution.
        dilation: of the attention; the convolution has none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        bias: bool = False,
    ):
        super().__init__()
        self.attn = MSAConvAttention(in_channels, 1, kernel_size, dilation, proj=False)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C_in] -> [B, H', W', C_out]``."""
        x = x + self.attn(x)
        return self.conv(x.permute(0, 3, 1, 2)).relu().permute(0, 2, 3, 1)
