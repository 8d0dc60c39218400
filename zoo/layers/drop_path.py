"""Stochastic depth (arXiv:1603.09382): a residual branch is dropped for an image at random, in training."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Zeroes whole images of a batch with probability ``p`` and scales the others by ``1 / (1 - p)``.

    timm has the same module; importing timm costs more than importing torch does, and models need nothing else of it.

    Args:
        p: probability, 0 <= p < 1.
    """

    def __init__(self, p: float = 0.0):
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p={p}: accepted are probabilities from 0 to less than 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """``[B, ...] -> [B, ...]``."""
        if self.p == 0.0 or not self.training:
            return x
        mask = x.new_empty(x.shape[:1] + (1,) * (x.ndim - 1)).bernoulli_(1.0 - self.p)
        return x * mask.div_(1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:.3g}"
