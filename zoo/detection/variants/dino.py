"""Named models: DINO (arXiv:2203.03605); sizes and scores in ``weights/index/dino.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import INPUT_SIZE, NANO_SIZE, nano_backbone, resnet, swin
from zoo.registry import register_model, variant

_SMALL = dict(d_model=128, nhead=8, num_encoder_layers=3, num_decoder_layers=3, dim_feedforward=256, dropout=0.0)


@register_model(task="detection", family="dino", input_size=INPUT_SIZE)
@variant(Detector)
def dino_4scale_r50() -> dict[str, Any]:
    """ResNet-50, four levels."""
    return dict(backbone=resnet("resnet50", (1, 2, 3)), network=dict(type="zoo.detection.dino.DINO"))


@register_model(task="detection", family="dino", input_size=INPUT_SIZE)
@variant(Detector)
def dino_5scale_r50() -> dict[str, Any]:
    """ResNet-50, five levels."""
    return dict(
        backbone=resnet("resnet50", (0, 1, 2, 3)), network=dict(type="zoo.detection.dino.DINO", num_feature_levels=5)
    )


@register_model(task="detection", family="dino", input_size=INPUT_SIZE)
@variant(Detector)
def dino_4scale_swin_l() -> dict[str, Any]:
    """Swin-L of 384 pixels, four levels."""
    return dict(backbone=swin("large_384", (1, 2, 3), 0.2), network=dict(type="zoo.detection.dino.DINO"))


@register_model(task="detection", family="dino", input_size=NANO_SIZE)
@variant(Detector)
def dino_nano() -> dict[str, Any]:
    """For the eight generated shapes: 2 million parameters."""
    return dict(
        num_classes=8,
        backbone=nano_backbone(),
        network=dict(
            type="zoo.detection.dino.DINO", num_queries=30, num_feature_levels=3, dn_number=50, transformer=_SMALL
        ),
    )
