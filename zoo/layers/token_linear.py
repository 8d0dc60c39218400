"""Linear layers over many tokens, on a CPU through oneDNN.

PyTorch gives float32 ``linear`` to the BLAS that it was built with, and convolutions to oneDNN. On CPUs whose widest
instructions that BLAS does not use (AMD's, with MKL) the convolution is twice as fast for the same product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: PyTorch gives a 1x1 convolution to oneDNN from this batch on (and always with several threads)
_BATCH = 16
#: tokens and multiply-adds below which the detour does not pay
_TOKENS, _WORK = 64, 6_000_000


def _by_convolution(x: Tensor, channels: int, outputs: int) -> bool:
    return (
        not torch.compiler.is_compiling()  # first: sizes may be symbols
        and not torch.jit.is_tracing()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() >= _TOKENS * channels
        and x.numel() * outputs >= _WORK
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def token_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` over the last dimension: ``[..., C] -> [..., D]``; the same numbers up to rounding.

    Args:
        x: ``[..., C]``.
        weight: ``[D, C]``.
        bias: ``[D]`` or None.
    """
    if not _by_convolution(x, x.shape[-1], weight.shape[0]):
        return F.linear(x, weight, bias)
    C, D = x.shape[-1], weight.shape[0]
    rows = x.numel() // C
    flat = x.reshape(rows, C)
    main = rows - rows % _BATCH
    images = flat[:main].view(_BATCH, main // _BATCH, 1, C).permute(0, 3, 1, 2)  # channels last
    y = F.conv2d(images, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(main, D)
    if main < rows:
        y = torch.cat([y, F.linear(flat[main:], weight, bias)])
    return y.view(*x.shape[:-1], D)


class TokenLinear(nn.Linear):
    """``nn.Linear`` by :func:`token_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return token_linear(x, self.weight, self.bias)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution by :func:`token_linear`; its result has its channels last in memory.

    Args:
        in_channels, out_channels: channels.
        bias: whether there is one.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not _by_convolution(x, self.in_channels, self.out_channels):
            return super().forward(x)
        y = token_linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return y.permute(0, 3, 1, 2)
