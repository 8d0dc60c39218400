"""torchvision's parts of region-based detectors, made exact for maps and images of any size and for half precision.

torchvision guesses the strides of maps from the images' sizes, which goes wrong where a map's size was rounded up, and
makes anchors in the precision of the maps. Here strides are given, and boxes, logits and losses are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper


class PyramidAnchors(AnchorGenerator):
    """torchvision's anchors, at given strides.

    Args:
        strides: image pixels a pixel of each level.
        sizes: roots of the anchors' areas, in pixels; one or several for each level.
        ratios: height over width.

    Raises:
        ValueError: other numbers of strides and sizes.
    """

    def __init__(
        self,
        strides: Sequence[int],
        sizes: Sequence[float | Sequence[float]],
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ):
        if len(strides) != len(sizes):
            raise ValueError(f"anchor_sizes has {len(sizes)} entries for {len(strides)} levels")
        each = tuple(tuple(s) if isinstance(s, Sequence) else (s,) for s in sizes)
        super().__init__(each, (tuple(ratios),) * len(each))
        self.map_strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors of each image as corners in pixels, float32 ``[A, 4]``."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(s, device=device)] * 2 for s in self.map_strides]
        anchors = torch.cat(self.grid_anchors([list(x.shape[-2:]) for x in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class Float32RPNHead(RPNHead):
    """torchvision's head of the proposals; logits and offsets are float32."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, offsets = super().forward(x)
        return [v.float() for v in logits], [v.float() for v in offsets]


class Float32BoxPredictor(FastRCNNPredictor):
    """torchvision's predictor of classes and boxes; both are float32."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, offsets = super().forward(x)
        return logits.float(), offsets.float()


class Float32MaskPredictor(MaskRCNNPredictor):
    """torchvision's predictor of masks; the logits are float32."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x).float()


def roi_align(strides: Sequence[int], side: int, canonical_scale: int) -> MultiScaleRoIAlign:
    """Regions' features from the levels that their sizes ask for (arXiv:1612.03144, eq. 1).

    Args:
        strides: image pixels a pixel of each level, each twice the one before.
        side: of a region's features.
        canonical_scale: regions of this side, in pixels, are read from the level of stride 16.

    Raises:
        ValueError: strides that do not double.
    """
    if any(b != 2 * a for a, b in zip(strides[:-1], strides[1:])) or strides[0] & (strides[0] - 1):
        raise ValueError(f"strides={tuple(strides)}: accepted are powers of two, each twice the one before")
    pool = MultiScaleRoIAlign(
        [str(i) for i in range(len(strides))], side, 2, canonical_scale=canonical_scale, canonical_level=4
    )
    # What torchvision would otherwise guess from the first batch.
    pool.scales = [1 / s for s in strides]
    levels = [s.bit_length() - 1 for s in strides]
    pool.map_levels = initLevelMapper(levels[0], levels[-1], canonical_scale=canonical_scale, canonical_level=4)
    return pool


def box_head(kind: str, dim: int, side: int, channels: int) -> tuple[nn.Module, int]:
    """What comes between a region's features and its classes, and how many channels it gives.

    Args:
        kind: "mlp" (two hidden layers) or "conv" (four normalised convolutions and a hidden layer).
        dim: channels of the levels.
        side: of a region's features.
        channels: of the hidden layers.

    Raises:
        ValueError: another kind.
    """
    if kind == "mlp":
        return TwoMLPHead(dim * side**2, channels), channels
    if kind == "conv":
        convs = [dim] * 4
        return FastRCNNConvFCHead((dim, side, side), convs, [channels], norm_layer=nn.BatchNorm2d), channels
    raise ValueError(f"box_head={kind!r}: accepted are 'mlp' and 'conv'")


def mask_parts(dim: int, convs: int, num_classes: int, batch_norm: bool) -> tuple[nn.Module, nn.Module]:
    """The convolutions over a region's features, and the predictor of one mask a class (the background included)."""
    norm: Any = nn.BatchNorm2d if batch_norm else None
    return MaskRCNNHeads(dim, [dim] * convs, 1, norm_layer=norm), Float32MaskPredictor(dim, dim, num_classes)
