"""The two-layer perceptron of transformer blocks."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear


class Mlp(nn.Module):
    """Linear, activation, linear over the last dimension.

    Args:
        dim: channels in and out.
        hidden: channels in between.
        act_layer: class of the activation.
    """

    def __init__(self, dim: int, hidden: int, act_layer: type[nn.Module] = nn.GELU):
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden)
        self.act = act_layer()
        self.fc2 = TokenLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C] -> [..., C]``."""
        return self.fc2(self.act(self.fc1(x)))
