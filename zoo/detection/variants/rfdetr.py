"""Named models: RF-DETR (arXiv:2511.09554), by size and input; sizes and scores in ``weights/index/rfdetr.yaml``.

The names of sizes are the authors' (their nano is ``rfdetr_nano_384``); ``rfdetr_nano`` is this project's, for
generated shapes.
"""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import NANO_SIZE, nano_backbone
from zoo.registry import register_model, variant

_SIZES = {"small": (384, 6), "base": (768, 12)}


def rfdetr(
    layers: int,
    *,
    patch: int = 16,
    windows: int = 2,
    table: int,
    stages: tuple[int, ...] = (3, 6, 9, 12),
    size: str = "small",
    transformer: dict[str, Any] | None = None,
    **network: Any,
) -> dict[str, Any]:
    """Arguments of a detector.

    Args:
        layers: of the decoder.
        patch, windows, table: ``patch_size``, ``num_windows`` and ``table_size`` of the backbone, see
            :class:`zoo.backbones.dinov2_windowed.WindowedDINOv2`.
        stages: blocks after which maps are given, counted from 1; the authors read the same numbers, counted from 0,
            as the blocks that see the whole image.
        size: of DINOv2.
        transformer, network: further arguments of the network and its transformer.
    """
    dim, heads = _SIZES[size]
    return dict(
        backbone=dict(
            type="zoo.backbones.dinov2_windowed.WindowedDINOv2",
            embed_dim=dim,
            num_heads=heads,
            patch_size=patch,
            table_size=table,
            num_windows=windows,
            global_blocks=[s for s in stages if s < 12],
            out_indices=tuple(s - 1 for s in stages),
        ),
        network=dict(
            type="zoo.detection.rfdetr.RFDETR",
            stride=patch,
            transformer=dict(num_layers=layers, **(transformer or {})),
            **network,
        ),
    )


def _masks(layers: int, queries: int, table: int, windows: int = 2) -> dict[str, Any]:
    return rfdetr(layers, patch=12, windows=windows, table=table, num_queries=queries, segmentation_head=True)


@register_model(task="detection", family="rfdetr", input_size=384)
@variant(Detector)
def rfdetr_nano_384() -> dict[str, Any]:
    """Two decoder layers."""
    return rfdetr(2, table=24)


@register_model(task="detection", family="rfdetr", input_size=512)
@variant(Detector)
def rfdetr_small_512() -> dict[str, Any]:
    """Three decoder layers."""
    return rfdetr(3, table=32)


@register_model(task="detection", family="rfdetr", input_size=576)
@variant(Detector)
def rfdetr_medium_576() -> dict[str, Any]:
    """Four decoder layers."""
    return rfdetr(4, table=36)


@register_model(task="detection", family="rfdetr", input_size=704)
@variant(Detector)
def rfdetr_large_704() -> dict[str, Any]:
    """Four decoder layers, of 2026."""
    return rfdetr(4, table=44)


@register_model(task="detection", family="rfdetr", input_size=560)
@variant(Detector)
def rfdetr_base_560() -> dict[str, Any]:
    """The first release's base model."""
    return rfdetr(3, patch=14, windows=4, table=37, stages=(2, 5, 8, 11))


@register_model(task="detection", family="rfdetr", input_size=560)
@variant(Detector)
def rfdetr_large_560() -> dict[str, Any]:
    """The first release's large model: DINOv2-B, two levels."""
    return rfdetr(
        3,
        patch=14,
        windows=4,
        table=37,
        stages=(2, 5, 8, 11),
        size="base",
        levels=("P3", "P5"),
        transformer=dict(d_model=384, sa_heads=12, ca_heads=24, n_points=4),
    )


@register_model(task="detection", family="rfdetr", input_size=312)
@variant(Detector)
def rfdetr_seg_nano_312() -> dict[str, Any]:
    """With masks; one window."""
    return _masks(4, 100, table=26, windows=1)


@register_model(task="detection", family="rfdetr", input_size=384)
@variant(Detector)
def rfdetr_seg_small_384() -> dict[str, Any]:
    """With masks."""
    return _masks(4, 100, table=32)


@register_model(task="detection", family="rfdetr", input_size=432)
@variant(Detector)
def rfdetr_seg_medium_432() -> dict[str, Any]:
    """With masks."""
    return _masks(5, 200, table=36)


@register_model(task="detection", family="rfdetr", input_size=504)
@variant(Detector)
def rfdetr_seg_large_504() -> dict[str, Any]:
    """With masks."""
    return _masks(5, 200, table=42)


@register_model(task="detection", family="rfdetr", input_size=624)
@variant(Detector)
def rfdetr_seg_xlarge_624() -> dict[str, Any]:
    """With masks."""
    return _masks(6, 300, table=52)


@register_model(task="detection", family="rfdetr", input_size=768)
@variant(Detector)
def rfdetr_seg_2xlarge_768() -> dict[str, Any]:
    """With masks."""
    return _masks(6, 300, table=64)


@register_model(task="detection", family="rfdetr", input_size=576)
@variant(Detector)
def rfdetr_keypoint_576() -> dict[str, Any]:
    """With 17 keypoints of persons (the authors' preview)."""
    return rfdetr(
        4,
        patch=12,
        table=48,
        num_queries=100,
        keypoint_counts=(17,),
        dual_projector=True,
        dual_projector_kp_only=True,
    )


@register_model(task="detection", family="rfdetr", input_size=NANO_SIZE)
@variant(Detector)
def rfdetr_nano() -> dict[str, Any]:
    """For generated shapes: a small ResNet in the place of DINOv2."""
    return dict(
        backbone=nano_backbone(one_map=True),
        network=dict(
            type="zoo.detection.rfdetr.RFDETR",
            num_queries=30,
            groups=5,
            levels=("P3", "P4", "P5"),
            transformer=dict(d_model=128, sa_heads=8, ca_heads=8, num_layers=3, dim_feedforward=256),
        ),
    )
