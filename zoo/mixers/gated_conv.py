"""Gated convolution: the token mixing of a gated CNN block, without attention and without a state space model.

MambaOut: Do We Really Need Mamba for Vision? (CVPR 2025, arXiv 2405.07992, eq. 5-6), after Language Modeling
with Gated Convolutional Networks (arXiv 1612.08083). Authors' code: github.com/yuweihao/MambaOut (Apache-2.0).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer


@register_mixer(name="gated_conv")
class GatedConv(Mixer):
    """``W2 (act(g) * [i, dwconv(c)])`` with ``[g, i, c] = W1 x``: tokens mix in a depth-wise convolution only.

    Args:
        dim: channels C.
        num_heads: without effect but that it must divide ``dim``; there are no heads.
        expansion_ratio: width of the gate over C, rounded down.
        kernel_size: side of the convolution, an odd number.
        conv_ratio: channels that are convolved over C (not over the width of the gate), rounded down.
        act_layer: class of the gate's activation.

    Raises:
        ValueError: more convolved channels than the gate is wide, or none; an even kernel.
    """

    growth = "linear"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        expansion_ratio: float = 8 / 3,
        kernel_size: int = 7,
        conv_ratio: float = 1.0,
        act_layer: type[nn.Module] = nn.GELU,
    ):
        super().__init__(dim, num_heads)
        hidden, convolved = int(expansion_ratio * dim), int(conv_ratio * dim)
        if not 1 <= convolved <= hidden:
            raise ValueError(
                f"conv_ratio={conv_ratio} of dim={dim} gives {convolved} convolved channels; accepted are 1 to the "
                f"{hidden} of expansion_ratio={expansion_ratio}"
            )
        self.sizes = (hidden, hidden - convolved, convolved)  # gate, identity, convolution
        self.fc1 = TokenLinear(dim, 2 * hidden)
        self.act = act_layer()
        self.conv = DepthwiseConv(convolved, kernel_size)
        self.fc2 = TokenLinear(hidden, dim)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``; raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        gate, identity, convolved = self.fc1(x).split(self.sizes, dim=-1)
        return self.fc2(self.act(gate) * torch.cat([identity, self.conv(convolved)], dim=-1))

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        return linear_flops(tokens, self.fc1, self.fc2) + self.conv.flops(tokens)
