"""UPerNet's head: pyramid pooling of the last map, a feature pyramid, all levels in one.

Unified Perceptual Parsing for Scene Understanding (arXiv:1807.10221); pooling as in PSPNet (arXiv:1612.01105). It
computes what mmsegmentation's UPerHead and transformers' UperNetHead compute. What differs is the order: convolutions
of enlarged maps mix the channels on the small ones, see :func:`zoo.segmentation.layers.conv_of_enlarged`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.segmentation.layers import ConvNorm, SegmentationHead, enlarge


class UPerNetHead(SegmentationHead):
    """Pyramid pooling and feature pyramid.

    Args:
        channels: channels of the maps, from the largest map to the smallest.
        num_classes: classes.
        dim: channels of all levels.
        pool_scales: sides to which the last map is pooled.
        norm: "bn", "sync_bn" or "gn"; see :func:`zoo.segmentation.layers.make_norm`.
        dropout: of the channels that the classifier reads.

    Raises:
        ValueError: no maps, no scales; (in ``forward``) maps of other channels.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        dim: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        norm: str = "bn",
        dropout: float = 0.1,
    ):
        super().__init__(channels, num_classes, dim, dropout)
        if not pool_scales or min(pool_scales) < 1:
            raise ValueError(f"pool_scales={tuple(pool_scales)}: accepted are whole numbers from 1, at least one")
        last = channels[-1]
        self.pool_scales = tuple(pool_scales)
        self.pools = nn.ModuleList(ConvNorm(last, dim, 1, norm) for _ in pool_scales)
        self.bottleneck = ConvNorm(last + len(pool_scales) * dim, dim, 3, norm)
        self.laterals = nn.ModuleList(ConvNorm(c, dim, 1, norm) for c in channels[:-1])
        self.smooth = nn.ModuleList(ConvNorm(dim, dim, 3, norm) for _ in channels[:-1])
        self.fuse = ConvNorm(len(channels) * dim, dim, 3, norm)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, C_i, H_i, W_i]`` to logits ``[B, num_classes, H_0, W_0]``."""
        self.check_maps(maps)
        last = maps[-1]
        pooled = [conv(F.adaptive_avg_pool2d(last, side)) for side, conv in zip(self.pool_scales, self.pools)]
        top = self.bottleneck.of_enlarged([last, *pooled])
        levels = [top]
        for i in reversed(range(len(self.laterals))):
            lateral = self.laterals[i](maps[i])
            top = lateral + enlarge(top, lateral.shape[-2:])
            levels.insert(0, self.smooth[i](top))
        return self.classify(self.fuse.of_enlarged(levels))
