"""Named models: Focus-DETR (arXiv:2307.12612); sizes and scores in ``weights/index/focus_detr.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import INPUT_SIZE, NANO_SIZE, nano_backbone, resnet, swin
from zoo.registry import register_model, variant

_NETWORK = dict(type="zoo.detection.focus_detr.FocusDETR")
_SMALL = dict(d_model=128, nhead=8, num_encoder_layers=3, num_decoder_layers=3, dim_feedforward=256, num_best=20)


@register_model(task="detection", family="focus_detr", input_size=INPUT_SIZE)
@variant(Detector)
def focus_detr_r50() -> dict[str, Any]:
    """ResNet-50, four levels."""
    return dict(backbone=resnet("resnet50", (1, 2, 3)), network=_NETWORK)


@register_model(task="detection", family="focus_detr", input_size=INPUT_SIZE)
@variant(Detector)
def focus_detr_r101() -> dict[str, Any]:
    """ResNet-101, four levels."""
    return dict(backbone=resnet("resnet101", (1, 2, 3)), network=_NETWORK)


@register_model(task="detection", family="focus_detr", input_size=INPUT_SIZE)
@variant(Detector)
def focus_detr_swin_tiny() -> dict[str, Any]:
    """Swin-T, four levels."""
    return dict(backbone=swin("tiny", (1, 2, 3), 0.1), network=_NETWORK)


@register_model(task="detection", family="focus_detr", input_size=INPUT_SIZE)
@variant(Detector)
def focus_detr_swin_base_384() -> dict[str, Any]:
    """Swin-B of 384 pixels, four levels."""
    return dict(backbone=swin("base_384", (1, 2, 3), 0.2), network=_NETWORK)


@register_model(task="detection", family="focus_detr", input_size=INPUT_SIZE)
@variant(Detector)
def focus_detr_swin_large_384() -> dict[str, Any]:
    """Swin-L of 384 pixels, four levels."""
    return dict(backbone=swin("large_384", (1, 2, 3), 0.2), network=_NETWORK)


@register_model(task="detection", family="focus_detr", input_size=NANO_SIZE)
@variant(Detector)
def focus_detr_nano() -> dict[str, Any]:
    """For generated shapes: 2 million parameters."""
    return dict(
        backbone=nano_backbone(),
        network=dict(
            **_NETWORK,
            num_classes=91,
            num_queries=30,
            num_feature_levels=3,
            strides=(8, 16, 32),
            dn_number=50,
            transformer=dict(**_SMALL, cascade=(1.0, 0.8, 0.6)),
        ),
    )
