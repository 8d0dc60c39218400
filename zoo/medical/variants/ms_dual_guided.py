"""Named models: MS-Dual-Guided (arXiv 1906.02849); sizes are in ``weights/index/ms_dual_guided.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.medical.ms_dual_guided import MSDualGuided
from zoo.registry import register_model, variant


@register_model(task="medical", kind="segmentation", family="ms_dual_guided", input_size=256)
@variant(MSDualGuided)
def ms_dual_guided_resnext101() -> dict[str, Any]:
    """The authors' network over ResNeXt-101 (32 x 8d)."""
    return dict(num_classes=5)


@register_model(task="medical", kind="segmentation", family="ms_dual_guided", input_size=96)
@variant(MSDualGuided)
def ms_dual_guided_nano() -> dict[str, Any]:
    """For slices of generated volumes: a ResNeXt of four blocks."""
    return dict(
        num_classes=5,
        dim=8,
        backbone=dict(stem=16, planes=(8, 16, 32, 64), layers=(1, 1, 1, 1), groups=4, base_width=32),
    )
