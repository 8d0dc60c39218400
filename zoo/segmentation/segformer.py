"""SegFormer's head: a linear layer for each map, all enlarged to the largest, fused by another one.

SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers (arXiv:2105.15203, section 3.2). It
computes what transformers' SegformerDecodeHead computes. What differs is the order: between the two linear layers is no
activation, and enlarging by interpolation keeps sums and constants, so that both are one layer on each map at its own
size. Its backbone is :mod:`zoo.backbones.mit`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.token_linear import TokenLinear
from zoo.segmentation.layers import SegmentationHead, enlarge, make_norm


class SegFormerHead(SegmentationHead):
    """Linear layers and a fusion.

    Args:
        channels: channels of the maps, from the largest map to the smallest.
        num_classes: classes.
        dim: channels of the linear layers.
        norm: of the fusion: "bn", "sync_bn" or "gn".
        dropout: of the channels that the classifier reads.

    Raises:
        ValueError: no maps; (in ``forward``) maps of other channels.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, dim: int = 256, norm: str = "bn", dropout: float = 0.1
    ):
        super().__init__(channels, num_classes, dim, dropout)
        self.projections = nn.ModuleList(TokenLinear(c, dim) for c in channels)
        self.fuse = nn.Conv2d(dim * len(channels), dim, 1, bias=False)
        self.norm = make_norm(norm, dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, C_i, H_i, W_i]`` to logits ``[B, num_classes, H_0, W_0]``."""
        self.check_maps(maps)
        # The fusion reads the maps from the smallest to the largest.
        parts = self.fuse.weight.flatten(1).chunk(len(maps), dim=1)[::-1]  # each [dim, dim]
        total = None
        for x, part, layer in zip(maps, parts, self.projections):
            weight, bias = part @ layer.weight, part @ layer.bias  # type: ignore[operator]  # [dim, C_i], [dim]
            x = enlarge(F.conv2d(x, weight[:, :, None, None], bias), maps[0].shape[-2:])
            total = x if total is None else total + x
        assert total is not None  # there is at least one map
        return self.classify(F.relu(self.norm(total), inplace=True))
