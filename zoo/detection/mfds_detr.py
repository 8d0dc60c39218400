"""MFDS-DETR: Deformable DETR over a feature pyramid that selects channels, for white blood cells.

Accurate Leukocyte Detection Based on Deformable-DETR and Multi-Level Feature Fusion for Aiding Diagnosis of Blood
Diseases (arXiv:2401.00926). Authors' code: github.com/JustlfC03/MFDS-DETR (Deformable DETR's headers: Apache-2.0); this
follows the paper and recorded results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoo.detection.deformable_detr import DeformableDETR
from zoo.detection.hs_fpn import HSFPN
from zoo.detection.images import mask_at
from zoo.detection.layers import InputProjection


class MFDSDETR(DeformableDETR):
    """From feature maps to classes and boxes.

    Args:
        channels: channels of the backbone's maps, one less than ``num_feature_levels``.
        keep_unused: also hold the projections that the authors' model has and never runs, so that their state dicts
            load and are given back whole; they take no gradient.
        **options: of :class:`zoo.detection.deformable_detr.DeformableDETR`.

    Raises:
        ValueError: another number of levels than of maps and one.
    """

    def __init__(self, channels: Sequence[int], keep_unused: bool = False, **options: Any):
        levels = options.get("num_feature_levels", 4)
        if levels != len(channels) + 1:
            raise ValueError(
                f"num_feature_levels={levels}: the pyramid makes {len(channels) + 1} of the backbone's maps"
            )
        super().__init__(channels, **options)
        dim = self.transformer.d_model
        self.fpn = HSFPN(channels, dim)
        self.fpn_proj_list = None
        if keep_unused:
            self.input_proj = InputProjection(channels, dim, len(channels)).requires_grad_(False)
            self.fpn_proj_list = nn.ModuleList(
                nn.Sequential(nn.Conv2d(channels[-1], dim, 1), nn.GroupNorm(32, dim)) for _ in range(levels)
            ).requires_grad_(False)
        else:
            del self.input_proj

    def make_levels(self, features: Sequence[Tensor], mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        levels = self.fpn(list(features))
        return levels, [mask_at(mask, x.shape[-2:]) for x in levels]
