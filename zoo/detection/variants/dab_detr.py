"""Named models: DAB-DETR (arXiv:2201.12329); sizes and scores in ``weights/index/dab_detr.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import INPUT_SIZE, NANO_SIZE, nano_backbone, resnet
from zoo.registry import register_model, variant

_SMALL = dict(d_model=128, nhead=8, num_encoder_layers=3, num_decoder_layers=3, dim_feedforward=256, dropout=0.0)


@register_model(task="detection", family="dab_detr", input_size=INPUT_SIZE)
@variant(Detector)
def dab_detr_r50() -> dict[str, Any]:
    """ResNet-50."""
    return dict(backbone=resnet("resnet50", (3,)), network=dict(type="zoo.detection.dab_detr.DABDETR"))


@register_model(task="detection", family="dab_detr", input_size=INPUT_SIZE)
@variant(Detector)
def dab_detr_r50_3pat() -> dict[str, Any]:
    """ResNet-50, every box with three contents."""
    return dict(
        backbone=resnet("resnet50", (3,)),
        network=dict(type="zoo.detection.dab_detr.DABDETR", transformer=dict(num_patterns=3)),
    )


@register_model(task="detection", family="dab_detr", input_size=INPUT_SIZE)
@variant(Detector)
def dab_detr_r50_dc5() -> dict[str, Any]:
    """ResNet-50 with a dilated last stage."""
    return dict(backbone=resnet("resnet50", (3,), dilation=True), network=dict(type="zoo.detection.dab_detr.DABDETR"))


@register_model(task="detection", family="dab_detr", input_size=INPUT_SIZE)
@variant(Detector)
def dab_detr_r50_dc5_3pat() -> dict[str, Any]:
    """ResNet-50 with a dilated last stage, every box with three contents."""
    return dict(
        backbone=resnet("resnet50", (3,), dilation=True),
        network=dict(type="zoo.detection.dab_detr.DABDETR", transformer=dict(num_patterns=3)),
    )


@register_model(task="detection", family="dab_detr", input_size=INPUT_SIZE)
@variant(Detector)
def dab_deformable_detr_r50() -> dict[str, Any]:
    """DAB-Deformable-DETR, ResNet-50, four levels."""
    return dict(
        backbone=resnet("resnet50", (1, 2, 3)), network=dict(type="zoo.detection.dab_deformable_detr.DABDeformableDETR")
    )


@register_model(task="detection", family="dab_detr", input_size=NANO_SIZE)
@variant(Detector)
def dab_detr_nano() -> dict[str, Any]:
    """For generated shapes: 2 million parameters."""
    return dict(
        backbone=nano_backbone(one_map=True),
        network=dict(type="zoo.detection.dab_detr.DABDETR", num_queries=30, transformer=_SMALL),
    )


@register_model(task="detection", family="dab_detr", input_size=NANO_SIZE)
@variant(Detector)
def dab_deformable_detr_nano() -> dict[str, Any]:
    """For generated shapes: 2 million parameters."""
    return dict(
        backbone=nano_backbone(),
        network=dict(
            type="zoo.detection.dab_deformable_detr.DABDeformableDETR",
            num_queries=30,
            num_feature_levels=3,
            transformer=_SMALL,
        ),
    )
