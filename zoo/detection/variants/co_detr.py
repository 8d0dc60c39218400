"""Named models: Co-DETR (arXiv:2211.12860); sizes and scores in ``weights/index/co_detr.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import INPUT_SIZE, NANO_SIZE, nano_backbone, resnet
from zoo.registry import register_model, variant

_DEFORMABLE = "zoo.detection.co_detr.CoDeformableDETR"
_DINO = "zoo.detection.co_detr.CoDINO"
_SMALL = dict(d_model=128, nhead=8, num_encoder_layers=3, num_decoder_layers=3, dim_feedforward=256, dropout=0.0)
_SMALL_HEADS = dict(rpn_channels=64, rpn_octaves=1, proposals=100, roi_channels=128, max_queries=30)


def _swin(name: str, out_indices: tuple[int, ...]) -> dict[str, Any]:
    return dict(type="zoo.backbones.timm.TimmBackbone", model_name=name, out_indices=out_indices, strict_img_size=False)


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_r50() -> dict[str, Any]:
    """Deformable DETR, ResNet-50, four levels."""
    return dict(backbone=resnet("resnet50", (1, 2, 3)), network=dict(type=_DEFORMABLE))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_swin_tiny() -> dict[str, Any]:
    """Deformable DETR, Swin-T (timm), four levels."""
    return dict(backbone=_swin("swin_tiny_patch4_window7_224", (1, 2, 3)), network=dict(type=_DEFORMABLE))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_swin_small() -> dict[str, Any]:
    """Deformable DETR, Swin-S (timm), four levels."""
    return dict(backbone=_swin("swin_small_patch4_window7_224", (1, 2, 3)), network=dict(type=_DEFORMABLE))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_swin_base() -> dict[str, Any]:
    """Deformable DETR, Swin-B of 384 pixels (timm), four levels."""
    return dict(backbone=_swin("swin_base_patch4_window12_384", (1, 2, 3)), network=dict(type=_DEFORMABLE))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_swin_large() -> dict[str, Any]:
    """Deformable DETR, Swin-L of 384 pixels (timm), four levels."""
    return dict(backbone=_swin("swin_large_patch4_window12_384", (1, 2, 3)), network=dict(type=_DEFORMABLE))


@register_model(task="detection", family="co_detr", input_size=INPUT_SIZE)
@variant(Detector)
def co_deformable_detr_swin_large_900q() -> dict[str, Any]:
    """Deformable DETR, Swin-L of 384 pixels (timm), four levels, 900 queries."""
    return dict(
        backbone=_swin("swin_large_patch4_window12_384", (1, 2, 3)), network=dict(type=_DEFORMABLE, num_queries=900)
    )


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
    """DINO, Swin-L of 384 pixels (timm), five levels."""
    return dict(backbone=_swin("swin_large_patch4_window12_384", (0, 1, 2, 3)), network=dict(type=_DINO))


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
            dn_number=20,
            auxiliary=dict(roi_finest=112, **_SMALL_HEADS),
            transformer=_SMALL,
        ),
    )
