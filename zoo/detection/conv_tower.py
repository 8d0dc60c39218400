"""Convolution, group normalisation, ReLU: what the towers of dense detectors consist of."""

from __future__ import annotations

from torch import Tensor, nn


class ConvGN(nn.Module):
    """A convolution with an optional norm and activation.

    Args:
        dim, out_dim: channels.
        kernel: pixels a side, odd.
        groups: of the group normalisation; None for none.
        bias: of the convolution; None for one only where there is no norm.
        act: end with a ReLU.
        stride: of the convolution.
        std: of the initial weights.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel: int = 3,
        groups: int | None = 32,
        bias: bool | None = None,
        act: bool = True,
        stride: int = 1,
        std: float = 0.01,
    ):
        super().__init__()
        bias = groups is None if bias is None else bias
        self.conv = nn.Conv2d(dim, out_dim, kernel, stride, kernel // 2, bias=bias)
        self.gn = None if groups is None else nn.GroupNorm(groups, out_dim)
        self.act: nn.Module = nn.ReLU() if act else nn.Identity()
        nn.init.normal_(self.conv.weight, std=std)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, dim, H, W] -> [B, out_dim, H / stride, W / stride]``."""
        x = self.conv(x)
        return self.act(x if self.gn is None else self.gn(x))


def tower(dim: int, count: int, groups: int | None = 32, bias: bool | None = None) -> nn.Sequential:
    """``count`` 3x3 convolutions that keep ``dim`` channels, see :class:`ConvGN`."""
    return nn.Sequential(*(ConvGN(dim, dim, groups=groups, bias=bias) for _ in range(count)))


def prediction(dim: int, out_dim: int, bias: float = 0.0) -> nn.Conv2d:
    """A last 3x3 convolution with small weights and this bias."""
    layer = nn.Conv2d(dim, out_dim, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer
