"""Any mixer with context broadcasting after it: the mean over all tokens is added to each of them.

Scratching Visual Transformer's Back with Uniform Attention (ICCV 2023, arXiv 2210.08457). The paper does best with the
broadcast at the end of the MLP, which is an option of the hosts (``context_broadcast="cb"``); this puts it at the end
of the attention, and does so in any backbone that takes a mixer.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zoo.layers.context_broadcast import ContextBroadcast
from zoo.layers.padding import to_pair
from zoo.mixers.base import Mixer, build_mixer
from zoo.registry import register_mixer


@register_mixer(name="context_broadcast")
class ContextBroadcastMixer(Mixer):
    """``CB(mixer(x))``.

    Args:
        dim: channels C.
        num_heads: attention heads of the mixer.
        mixer: spec of the mixer.
        mode: "cb": (x + mean x) / 2; "cb_s": x + scale * mean x with a learned weight for each channel.
        input_size: map (H, W) for mixers with tables of that size.

    Raises:
        ValueError: ``mode`` is neither.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        mixer: Any = "softmax",
        mode: str = "cb",
        input_size: int | tuple[int, int] = (14, 14),
    ):
        super().__init__(dim, num_heads)
        self.mixer = build_mixer(mixer, dim, num_heads, to_pair(input_size, "input_size"))
        self.broadcast = ContextBroadcast(dim, mode)
        self.takes_prefix = self.mixer.takes_prefix
        self.growth = self.mixer.growth
        self.normalised_rows = self.mixer.normalised_rows

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``[B, H, W, C] -> [B, H, W, C]``, with ``prefix`` ``[B, P, C]`` the pair of map and prefix."""
        self._check(x, prefix)
        return self.broadcast(self.mixer(x)) if prefix is None else self.broadcast(*self.mixer(x, prefix))

    def attention_map(self, x: Tensor) -> Tensor:
        """That of the mixer inside, ``[B, heads, H*W, H*W]``, without the uniform attention that is added to it."""
        return self.mixer.attention_map(x)

    def flops(self, height: int, width: int) -> int:
        # A product for the mean and one for the sum, for each token and channel.
        return self.mixer.flops(height, width) + 2 * height * width * self.dim
