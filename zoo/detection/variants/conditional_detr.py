"""Named models: Conditional DETR (arXiv:2108.06152); sizes and scores in ``weights/index/conditional_detr.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import INPUT_SIZE, NANO_SIZE, nano_backbone, resnet
from zoo.registry import register_model, variant

_SMALL = dict(d_model=128, nhead=8, num_encoder_layers=3, num_decoder_layers=3, dim_feedforward=256, dropout=0.0)


@register_model(task="detection", family="conditional_detr", input_size=INPUT_SIZE)
@variant(Detector)
def conditional_detr_r50() -> dict[str, Any]:
    """ResNet-50."""
    return dict(backbone=resnet("resnet50", (3,)), network=dict(type="zoo.detection.conditional_detr.ConditionalDETR"))


@register_model(task="detection", family="conditional_detr", input_size=INPUT_SIZE)
@variant(Detector)
def conditional_detr_r50_dc5() -> dict[str, Any]:
    """ResNet-50 with a dilated last stage."""
    return dict(
        backbone=resnet("resnet50", (3,), dilation=True),
        network=dict(type="zoo.detection.conditional_detr.ConditionalDETR"),
    )


@register_model(task="detection", family="conditional_detr", input_size=INPUT_SIZE)
@variant(Detector)
def conditional_detr_r101() -> dict[str, Any]:
    """ResNet-101."""
    return dict(backbone=resnet("resnet101", (3,)), network=dict(type="zoo.detection.conditional_detr.ConditionalDETR"))


@register_model(task="detection", family="conditional_detr", input_size=INPUT_SIZE)
@variant(Detector)
def conditional_detr_r101_dc5() -> dict[str, Any]:
    """ResNet-101 with a dilated last stage."""
    return dict(
        backbone=resnet("resnet101", (3,), dilation=True),
        network=dict(type="zoo.detection.conditional_detr.ConditionalDETR"),
    )


@register_model(task="detection", family="conditional_detr", input_size=NANO_SIZE)
@variant(Detector)
def conditional_detr_nano() -> dict[str, Any]:
    """For generated shapes: 2 million parameters."""
    return dict(
        backbone=nano_backbone(one_map=True),
        network=dict(type="zoo.detection.conditional_detr.ConditionalDETR", num_queries=30, transformer=_SMALL),
    )
