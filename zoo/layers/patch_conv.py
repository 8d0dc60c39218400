"""Convolution of patches that do not overlap, on maps of any size."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.layers.padding import pad_chw


class PatchConv(nn.Conv2d):
    """Convolution of patches of ``size``, ``[B, C, H, W]``; a map that they do not divide is zero-padded or cut.

    Args:
        in_chans, out_chans: channels.
        size: side of a patch.
        drop_remainder: leave out the last rows and columns that make no whole patch, rather than pad.

    Raises:
        ValueError: (in ``forward``) ``drop_remainder`` would leave nothing.
    """

    def __init__(self, in_chans: int, out_chans: int, size: int, drop_remainder: bool = False):
        super().__init__(in_chans, out_chans, size, size)
        self.drop_remainder = drop_remainder

    def forward(self, x: Tensor) -> Tensor:
        size = self.kernel_size[0]
        if not self.drop_remainder:
            x = pad_chw(x, (size, size))
        elif x.shape[2] < size or x.shape[3] < size:
            raise ValueError(
                f"a map of {x.shape[2]} x {x.shape[3]} has no patch of {size} x {size}; drop_remainder=False pads it"
            )
        return super().forward(x)


def patches(pixels: int, size: int, drop_remainder: bool) -> int:
    """Patches along an axis of ``pixels``, as :class:`PatchConv` counts them."""
    return pixels // size if drop_remainder else -(-pixels // size)
