"""Named models: Co-DETR (arXiv:2211.12860); sizes and scores in ``weights/index/co_detr.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import INPUT_SIZE, NANO_SIZE, nano_backbone, resnet, swin
from zoo.registry import register_model, variant

_DEFORMABLE = "zoo.detection.co_detr.CoDeformableDETR"
_DINO = "zoo.detection.co_detr.CoDINO"
_SMALL = dict(d_model=128, nhead=8, num_encoder_layers=3, num_decoder_layers=3, dim_feedforward=256, dropout=0.0)
_SMALL_HEADS = dict(rpn_channels=64, rpn_octaves=1, proposals=20, roi_channels=128, roi_samples=16, max_queries=9)


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_r50() -> dict[str, Any]:
    """Deformable DETR, ResNet-50, four levels."""
    return dict(backbone=resnet("resnet50", (1, 2, 3)), network=dict(type=_DEFORMABLE))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_swin_tiny() -> dict[str, Any]:
    """Deformable DETR, Swin-T, four levels."""
    return dict(backbone=swin("tiny", (1, 2, 3), 0.2), network=dict(type=_DEFORMABLE))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_swin_small() -> dict[str, Any]:
    """Deformable DETR, Swin-S, four levels."""
    return dict(backbone=swin("small", (1, 2, 3), 0.2), network=dict(type=_DEFORMABLE))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_swin_base() -> dict[str, Any]:
    """Deformable DETR, Swin-B of 384 pixels, four levels."""
    return dict(backbone=swin("base_384", (1, 2, 3), 0.2), network=dict(type=_DEFORMABLE))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_swin_large() -> dict[str, Any]:
    """Deformable DETR, Swin-L of 384 pixels, four levels."""
    return dict(backbone=swin("large_384", (1, 2, 3), 0.3), network=dict(type=_DEFORMABLE))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_swin_large_900q() -> dict[str, Any]:
    """Deformable DETR, Swin-L of 384 pixels, four levels, 900 queries."""
    return dict(backbone=swin("large_384", (1, 2, 3), 0.6), network=dict(type=_DEFORMABLE, num_queries=900))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_dino_5scale_r50() -> dict[str, Any]:
    """DINO, ResNet-50, five levels."""
    return dict(backbone=resnet("resnet50", (0, 1, 2, 3)), network=dict(type=_DINO))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_dino_5scale_9encoder_r50() -> dict[str, Any]:
    """DINO, ResNet-50, five levels, nine encoder layers."""
    return dict(
        backbone=resnet("resnet50", (0, 1, 2, 3)), network=dict(type=_DINO, transformer=dict(num_encoder_layers=9))
    )


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_dino_5scale_swin_large() -> dict[str, Any]:
    """DINO, Swin-L of 384 pixels, five levels."""
    return dict(backbone=swin("large_384", (0, 1, 2, 3), 0.3), network=dict(type=_DINO))


@register_model(task="detection", family="co_detr", input_size=NANO_SIZE)
@variant(Detector)
def co_deformable_detr_nano() -> dict[str, Any]:
    """Deformable DETR for generated shapes."""
    return dict(
        backbone=nano_backbone(),
        network=dict(
            type=_DEFORMABLE,
            num_classes=91,
            num_queries=30,
            num_feature_levels=3,
            strides=(8, 16, 32),
            auxiliary=_SMALL_HEADS,
            transformer=_SMALL,
        ),
    )


@register_model(task="detection", family="co_detr", input_size=NANO_SIZE)
@variant(Detector)
def co_dino_nano() -> dict[str, Any]:
    """DINO for generated shapes."""
    return dict(
        backbone=nano_backbone(),
        network=dict(
            type=_DINO,
            num_classes=91,
            num_queries=30,
            num_feature_levels=3,
            strides=(8, 16, 32),
            dn_number=50,
            auxiliary=dict(roi_finest=112, **_SMALL_HEADS),
            transformer=_SMALL,
        ),
    )
