"""Partial attention convolution (PATConv): some channels are convolved, the others attend.

Partial Channel Network: Compute Fewer, Perform Better (arXiv 2502.01303), also Partial Convolution Meets Visual
Attention (arXiv 2503.03148). No authors' implementation was compared; this follows the papers' description.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.padding import to_pair
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


class PartialAttention(Mixer):
    """``y = [conv3x3(x_p), A(x_u)]``: the first C / ratio channels are convolved, the others get a kind of attention.

    Args:
        dim: channels C.
        num_heads: heads of self-attention (:class:`PartialSelfAttention`); otherwise it must only divide ``dim``.
        ratio: C over the convolved channels, rounded down.

    Raises:
        ValueError: a ratio that leaves no channel to convolve, or none to attend.
    """

    growth = "linear"

    def __init__(self, dim: int, num_heads: int = 1, ratio: int = 4):
        super().__init__(dim, num_heads)
        convolved = self._convolved(ratio)
        if ratio < 1 or not 0 < convolved < dim:
            raise ValueError(
                f"ratio={ratio} convolves {convolved} of dim={dim} channels; at least one must be convolved, one attend"
            )
        self.split = (convolved, dim - convolved)
        self.conv = nn.Conv2d(convolved, convolved, 3, padding=1, bias=False)

    def _convolved(self, ratio: int) -> int:
        return self.dim // max(1, ratio)

    def attend(self, x: Tensor) -> Tensor:
        """A of the other channels, ``[B, H, W, C - C_p]``."""
        raise NotImplementedError

    def attend_flops(self, height: int, width: int) -> int:
        """Multiply-accumulates of :meth:`attend`."""
        raise NotImplementedError

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``; raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        convolved, rest = x.split(self.split, dim=-1)
        convolved = self.conv(convolved.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return torch.cat([convolved, self.attend(rest)], dim=-1)

    def flops(self, height: int, width: int) -> int:
        return height * width * self.conv.weight.numel() + self.attend_flops(height, width)


@register_mixer(name="partial_channel")
class PartialChannelAttention(PartialAttention):
    """PAT_ch: a factor for each of the other channels, from its mean and standard deviation over the map.

    ``A(x)_c = x_c * hardsigmoid(w_c1 mean_c + w_c2 std_c + b_c)``: each channel is seen as a Gaussian. See
    :class:`PartialAttention`; the paper's BatchNorm behind the weights is the bias here, so that one image trains too.
    """

    def __init__(self, dim: int, num_heads: int = 1, ratio: int = 4):
        super().__init__(dim, num_heads, ratio)
        self.weight = nn.Parameter(0.5 * torch.randn(2, self.split[1]))
        self.bias = nn.Parameter(torch.zeros(self.split[1]))
        self.no_decay = ("weight",)

    def attend(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(1, 2), correction=0)  # [B, C_u] each
        gate = self.weight[0] * mean + self.weight[1] * (variance + 1e-5).sqrt() + self.bias
        return x * F.hardsigmoid(gate)[:, None, None].to(x.dtype)

    def attend_flops(self, height: int, width: int) -> int:
        return 3 * height * width * self.split[1]  # mean, variance, product


@register_mixer(name="partial_spatial")
class PartialSpatialAttention(PartialAttention):
    """PAT_sp: a factor for each place, from the other channels there: ``A(x) = x * hardsigmoid(w . x + b)``.

    See :class:`PartialAttention`.
    """

    def __init__(self, dim: int, num_heads: int = 1, ratio: int = 4):
        super().__init__(dim, num_heads, ratio)
        self.score = TokenLinear(self.split[1], 1)

    def attend(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.score(x))

    def attend_flops(self, height: int, width: int) -> int:
        tokens = height * width
        return linear_flops(tokens, self.score) + tokens * self.split[1]


@register_mixer(name="partial_self")
class PartialSelfAttention(PartialAttention):
    """PAT_sf: self-attention of the other channels over the whole map, with relative positions.

    The convolved channels are rounded to a multiple of the heads. See :class:`PartialAttention`; the relative position
    is a learned bias of each offset and head.

    Args:
        dim, num_heads, ratio: see there.
        input_size: map (H, W) that the position biases are made for; for other maps they are interpolated.
    """

    growth = "quadratic"

    def __init__(self, dim: int, num_heads: int = 1, ratio: int = 4, input_size: int | tuple[int, int] = (14, 14)):
        super().__init__(dim, num_heads, ratio)
        height, width = to_pair(input_size, "input_size")
        attending = self.split[1]
        self.qkv = TokenLinear(attending, 3 * attending)
        self.proj = TokenLinear(attending, attending)
        self.table = nn.Parameter(0.02 * torch.randn(1, num_heads, 2 * height - 1, 2 * width - 1))
        self.no_decay = ("table",)

    def _convolved(self, ratio: int) -> int:
        return max(1, self.head_dim // max(1, ratio)) * self.num_heads

    def bias(self, height: int, width: int) -> Tensor:
        """``[heads, H*W, H*W]``: of the offset of each pair of places."""
        table: Tensor = self.table
        size = (2 * height - 1, 2 * width - 1)
        if table.shape[2:] != size:
            table = F.interpolate(table, size=size, mode="bilinear", align_corners=False)
        rows, columns = (torch.arange(n, device=table.device) for n in (height, width))
        dy = rows[:, None, None, None] - rows[None, None, :, None] + height - 1  # [H, 1, H, 1]
        dx = columns[None, :, None, None] - columns[None, None, None, :] + width - 1  # [1, W, 1, W]
        return table[0][:, dy, dx].reshape(self.num_heads, height * width, height * width)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x.flatten(1, 2)).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, heads, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (t.contiguous() for t in self._qkv(x))
        out = dense_attention(q, k, v, bias=self.bias(x.shape[1], x.shape[2])[None].to(q.dtype))
        return self.proj(out.transpose(1, 2).flatten(2)).unflatten(1, x.shape[1:3])

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]`` of the attending channels; rows sum to 1."""
        self._check(x)
        q, k, _ = self._qkv(x[..., self.split[0] :])
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + self.bias(x.shape[1], x.shape[2])).softmax(-1)

    def attend_flops(self, height: int, width: int) -> int:
        tokens = height * width
        return linear_flops(tokens, self.qkv, self.proj) + 2 * tokens * tokens * self.split[1]
