"""The contract of a token mixer: a channels-last map in, a map of the same shape out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.mixers.sampling import Drawing
from zoo.registry import MIXERS, accepted_arguments, build, resolve


class Mixer(nn.Module):
    """Base of all token mixers (attention or what replaces it).

    A mixer is built as ``Mixer(dim, num_heads, **own)`` and maps ``[B, H, W, C] -> [B, H, W, C]`` for any H and W: it
    pads and masks by itself. Tables whose size follows the map are made for ``input_size=(H, W)`` and interpolated.

    Args:
        dim: channels C.
        num_heads: attention heads; must divide ``dim``.
    """

    #: Whether ``forward(x, prefix)`` is defined; where it is not, the host looks after prefix tokens itself.
    takes_prefix: bool = False

    #: How time and memory grow with the number of tokens, all settings fixed: "linear", "n log n" or "quadratic".
    growth: str = "quadratic"

    #: Whether rows of :meth:`attention_map` are non-negative and sum to 1 (signed or unnormalised attention: false).
    normalised_rows: bool = True

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Mix tokens.

        Args:
            x: ``[B, H, W, C]``.
            prefix: ``[B, P, C]`` tokens without a position (CLS), where :attr:`takes_prefix` is true.

        Returns:
            The mixed map ``[B, H, W, C]``; with ``prefix`` the pair of map and prefix.
        """
        raise NotImplementedError

    def flops(self, height: int, width: int) -> int:
        """Multiply-accumulates of one image of ``height`` x ``width`` tokens (the field's "FLOPs")."""
        raise NotImplementedError

    def attention_map(self, x: Tensor) -> Tensor:
        """How much each position attends to each: ``[B, heads, H*W, H*W]``, by the reference path.

        Rows sum to 1 where :attr:`normalised_rows` says so.

        Raises:
            TypeError: the mixer has no attention between positions.
        """
        raise TypeError(f"{type(self).__name__} has no attention map between positions")

    def attention_values(self, x: Tensor) -> Tensor:
        """What :meth:`attention_map` weighs: ``[B, heads, H*W, d]``, joined over heads by the output projection.

        What the mixer adds beside the weighted values, such as a convolution, does not count.

        Raises:
            TypeError: the mixer does not say.
        """
        raise TypeError(f"{type(self).__name__} does not say which values its attention weighs")

    def sampling(self, x: Tensor, query: tuple[float, float] = (0.5, 0.5)) -> list[Drawing]:
        """Where the mixer looks on an image, for drawing: windows, routed regions, agents, sampled points.

        Args:
            x: ``[1, H, W, C]``.
            query: the position that looks, (y, x) as shares of height and width, where it matters.

        Returns:
            Drawings, see :mod:`zoo.mixers.sampling`; none where the mixer looks everywhere.
        """
        self._check(x)
        return []

    def _check(self, x: Tensor, prefix: Tensor | None = None) -> None:
        if x.ndim != 4 or x.shape[-1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; {type(self).__name__} takes [B, H, W, {self.dim}]")
        if prefix is not None and not self.takes_prefix:
            raise TypeError(f"{type(self).__name__} defines no prefix tokens; the host handles them")

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"


def build_mixer(spec: Any, dim: int, num_heads: int, input_size: tuple[int, int]) -> Mixer:
    """A mixer from its spec, for a map of ``input_size`` (told to those that have tables of that size).

    Raises:
        TypeError: the spec is a built module, which several blocks would share without saying so.
    """
    if isinstance(spec, nn.Module):
        raise TypeError(f"mixer={type(spec).__name__}(...) is a built module; give its name, class or dict(type=...)")
    kind = spec.get("type") if isinstance(spec, dict) else spec
    sized = kind is not None and "input_size" in accepted_arguments(resolve(kind, MIXERS))[0]
    return build(spec, MIXERS, dim=dim, num_heads=num_heads, **({"input_size": input_size} if sized else {}))


def linear_flops(tokens: int, *layers: nn.Module | None) -> int:
    """Multiply-accumulates of ``nn.Linear`` and pointwise convolutions applied to ``tokens`` tokens."""
    return sum(tokens * m.weight.numel() for m in layers if isinstance(m, (nn.Linear, nn.Conv2d)) and m is not None)


@torch.no_grad()
def row_normalised(attention: Tensor) -> Tensor:
    """Divide each row by its sum (an attention whose keys were padded and cropped no longer sums to 1)."""
    return attention / attention.sum(-1, keepdim=True).clamp_min(torch.finfo(attention.dtype).tiny)
