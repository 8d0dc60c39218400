"""Named models: Deformable DETR (arXiv:2010.04159); sizes and scores in ``weights/index/deformable_detr.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import INPUT_SIZE, NANO_SIZE, nano_backbone, resnet
from zoo.registry import register_model, variant

_SMALL = dict(d_model=128, nhead=8, num_encoder_layers=3, num_decoder_layers=3, dim_feedforward=256, dropout=0.0)


@register_model(task="detection", family="deformable_detr", input_size=INPUT_SIZE)
@variant(Detector)
def deformable_detr_r50_single_scale() -> dict[str, Any]:
    """ResNet-50, the last map only."""
    return dict(
        backbone=resnet("resnet50", (3,)),
        network=dict(type="zoo.detection.deformable_detr.DeformableDETR", num_feature_levels=1),
    )


@register_model(task="detection", family="deformable_detr", input_size=INPUT_SIZE)
@variant(Detector)
def deformable_detr_r50_single_scale_dc5() -> dict[str, Any]:
    """ResNet-50 with a dilated last stage, the last map only."""
    return dict(
        backbone=resnet("resnet50", (3,), dilation=True),
        network=dict(type="zoo.detection.deformable_detr.DeformableDETR", num_feature_levels=1),
    )


@register_model(task="detection", family="deformable_detr", input_size=INPUT_SIZE)
@variant(Detector)
def deformable_detr_r50() -> dict[str, Any]:
    """ResNet-50, four levels."""
    return dict(
        backbone=resnet("resnet50", (1, 2, 3)), network=dict(type="zoo.detection.deformable_detr.DeformableDETR")
    )


@register_model(task="detection", family="deformable_detr", input_size=INPUT_SIZE)
@variant(Detector)
def deformable_detr_r50_refine() -> dict[str, Any]:
    """With iterative box refinement."""
    return dict(
        backbone=resnet("resnet50", (1, 2, 3)),
        network=dict(type="zoo.detection.deformable_detr.DeformableDETR", with_box_refine=True),
    )


@register_model(task="detection", family="deformable_detr", input_size=INPUT_SIZE)
@variant(Detector)
def deformable_detr_r50_two_stage() -> dict[str, Any]:
    """With box refinement, in two stages."""
    return dict(
        backbone=resnet("resnet50", (1, 2, 3)),
        network=dict(type="zoo.detection.deformable_detr.DeformableDETR", with_box_refine=True, two_stage=True),
    )


@register_model(task="detection", family="deformable_detr", input_size=NANO_SIZE)
@variant(Detector)
def deformable_detr_nano() -> dict[str, Any]:
    """For generated shapes, in two stages: 2 million parameters."""
    return dict(
        backbone=nano_backbone(),
        network=dict(
            type="zoo.detection.deformable_detr.DeformableDETR",
            num_queries=30,
            num_feature_levels=3,
            with_box_refine=True,
            two_stage=True,
            transformer=_SMALL,
        ),
    )
