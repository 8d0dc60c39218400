"""InLine attention inside windows, as in InLine-Swin (arXiv 2412.06590)."""

from __future__ import annotations

from zoo.mixers.inline import InLineAttention
from zoo.mixers.unmasked_windows import UnmaskedWindows
from zoo.registry import register_mixer


@register_mixer(name="inline_window")
class InLineWindowAttention(UnmaskedWindows, InLineAttention):
    """InLine attention inside windows that tile the map, which may be shifted against it.

    See :class:`~zoo.mixers.unmasked_windows.UnmaskedWindows`. Each window predicts the weights of its own convolution.

    Args:
        dim: channels C.
        num_heads: attention heads.
        window_size: tokens along each side of a window.
        shift_size: how far windows are shifted along both axes.
        feature_map: see :class:`~zoo.mixers.inline.InLineAttention`.
        qkv_bias: bias of the projection to queries, keys and values.
        whole_map: one window, whatever the size of the map.

    Raises:
        ValueError: a window below 1, a shift outside 0 to less than the window, an unknown feature map.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        window_size: int = 7,
        shift_size: int = 0,
        feature_map: str = "identity",
        qkv_bias: bool = True,
        whole_map: bool = False,
    ):
        self.check_windows(window_size, shift_size)
        InLineAttention.__init__(self, dim, num_heads, feature_map, qkv_bias)
        self.window_size, self.shift_size, self.whole_map = window_size, shift_size, whole_map
