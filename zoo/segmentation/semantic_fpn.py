"""Semantic-FPN: a feature pyramid, each level enlarged step by step to the largest, their sum classified.

Panoptic Feature Pyramid Networks (arXiv:1901.02446, figure 3), as mmsegmentation's FPN and FPNHead compute it, which
the papers of PVT, BiFormer and others use.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork

from zoo.segmentation.layers import ConvNorm, SegmentationHead, enlarge


class SemanticFPNHead(SegmentationHead):
    """Feature pyramid and the sum of its levels.

    Args:
        channels: channels of the maps, from the largest map to the smallest.
        num_classes: classes.
        strides: image pixels per position of the maps; a level is enlarged as often as its stride is twice the first.
        pyramid_dim: channels of the pyramid.
        dim: channels behind it.
        norm: "bn", "sync_bn" or "gn".
        dropout: of the channels that the classifier reads.

    Raises:
        ValueError: strides that are not the first times powers of 2, not one for each map; (in ``forward``) maps of
            other channels.
    """

    takes: ClassVar[tuple[str, ...]] = ("channels", "num_classes", "strides")

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        strides: Sequence[int] = (4, 8, 16, 32),
        pyramid_dim: int = 256,
        dim: int = 128,
        norm: str = "bn",
        dropout: float = 0.1,
    ):
        super().__init__(channels, num_classes, dim, dropout)
        steps = [math.log2(s / strides[0]) for s in strides]
        if len(strides) != len(channels) or any(s < 0 or s != int(s) for s in steps):
            raise ValueError(
                f"strides={tuple(strides)} for {len(channels)} maps: accepted is one for each map, the first one times "
                f"1, 2, 4, ..."
            )
        self.pyramid = FeaturePyramidNetwork(list(channels), pyramid_dim)
        self.steps = tuple(int(s) for s in steps)
        self.towers = nn.ModuleList(
            nn.ModuleList(ConvNorm(dim if k else pyramid_dim, dim, 3, norm) for k in range(max(1, step)))
            for step in self.steps
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, C_i, H_i, W_i]`` to logits ``[B, num_classes, H_0, W_0]``."""
        self.check_maps(maps)
        levels = self.pyramid(OrderedDict((str(i), x) for i, x in enumerate(maps))).values()
        total = None
        for x, step, tower in zip(levels, self.steps, self.towers):
            for conv in tower:  # type: ignore[attr-defined]
                x = conv(x)
                if step:
                    x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            total = x if total is None else total + enlarge(x, total.shape[-2:])
        assert total is not None  # there is at least one map
        return self.classify(total)
