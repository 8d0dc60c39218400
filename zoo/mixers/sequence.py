"""What mixers share that see the map as a sequence of tokens in raster order, prefix tokens in front."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.mixers.base import Mixer


class SequenceMixer(Mixer):
    """Base of mixers over a sequence: a subclass defines :meth:`mix` and :meth:`weights`.

    One without a matrix between positions takes :class:`Mixer`'s ``attention_map`` back, which says so.

    Args:
        dim: channels C.
        num_heads: attention heads; must divide ``dim``.
    """

    takes_prefix = True

    def mix(self, tokens: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, C]``."""
        raise NotImplementedError

    def weights(self, tokens: Tensor) -> Tensor:
        """The weights of the values, ``[B, heads, N, N]``, of tokens ``[B, N, C]``."""
        raise NotImplementedError

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``[B, H, W, C] -> [B, H, W, C]``, with ``prefix`` ``[B, P, C]`` the pair of map and prefix."""
        self._check(x, prefix)
        size = (x.shape[1], x.shape[2])
        tokens = x.flatten(1, 2)
        if prefix is None:
            return self.mix(tokens).unflatten(1, size)
        P = prefix.shape[1]
        out = self.mix(torch.cat([prefix, tokens], dim=1))
        return out[:, P:].unflatten(1, size), out[:, :P]

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: what the values are weighted by; see ``normalised_rows``."""
        self._check(x)
        return self.weights(x.flatten(1, 2))

    def split(self, x: Tensor) -> Tensor:
        """``[B, N, heads * d] -> [B, heads, N, d]``."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """``[B, heads, N, d] -> [B, N, heads * d]``."""
        return x.transpose(1, 2).flatten(2)
