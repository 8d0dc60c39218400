"""FCN's head: convolutions over one map; alone or beside another head (arXiv:1411.4038; PSPNet's auxiliary loss)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.segmentation.layers import ConvNorm, SegmentationHead


class FCNHead(SegmentationHead):
    """Convolutions over one of the maps.

    Args:
        channels: channels of all maps.
        num_classes: classes.
        in_index: the map that is read; negative numbers count from the last.
        dim: channels of the convolutions.
        num_convs: how many; 0 classifies the map itself.
        kernel: pixels a side, odd.
        dilation: of the convolutions.
        concat_input: end with a convolution over the map and what the others made of it.
        norm: "bn", "sync_bn" or "gn".
        dropout: of the channels that the classifier reads.

    Raises:
        ValueError: a map that is not there, a number out of range; (in ``forward``) maps of other channels.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        in_index: int = -1,
        dim: int = 256,
        num_convs: int = 2,
        kernel: int = 3,
        dilation: int = 1,
        concat_input: bool = True,
        norm: str = "bn",
        dropout: float = 0.1,
    ):
        if not -len(channels) <= in_index < len(channels):
            raise ValueError(f"in_index={in_index}: accepted are -{len(channels)} to {len(channels) - 1}")
        if num_convs < 0 or kernel < 1 or kernel % 2 == 0 or dilation < 1:
            raise ValueError(
                f"num_convs={num_convs}, kernel={kernel}, dilation={dilation}: accepted are whole numbers from 0, odd "
                f"numbers, whole numbers from 1"
            )
        width = channels[in_index]
        last = dim if num_convs or concat_input else width
        super().__init__(channels, num_classes, last, dropout)
        self.in_index = in_index
        widths = [width] + [dim] * num_convs
        self.convs = nn.Sequential(
            *(ConvNorm(widths[i], widths[i + 1], kernel, norm, dilation) for i in range(num_convs))
        )
        self.join = ConvNorm(width + widths[-1], dim, kernel, norm) if concat_input else None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, C_i, H_i, W_i]`` to logits of the size of the one that is read."""
        self.check_maps(maps)
        x = maps[self.in_index]
        y = self.convs(x)
        return self.classify(y if self.join is None else self.join(torch.cat([x, y], 1)))
