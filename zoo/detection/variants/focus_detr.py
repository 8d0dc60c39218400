"""Named models: Focus-DETR (arXiv:2307.12612); sizes and scores in ``weights/index/focus_detr.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import INPUT_SIZE, NANO_SIZE, nano_backbone, resnet
from zoo.registry import register_model, variant

_NETWORK = dict(type="zoo.detection.focus_detr.FocusDETR")
_SMALL = dict(d_model=128, nhead=8, num_encoder_layers=3, num_decoder_layers=3, dim_feedforward=256, num_best=20)


def _swin(name: str) -> dict[str, Any]:
    return dict(type="zoo.backbones.timm.TimmBackbone", model_name=name, out_indices=(1, 2, 3), strict_img_size=False)


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
    """Swin-T (timm), four levels."""
    return dict(backbone=_swin("swin_tiny_patch4_window7_224"), network=_NETWORK)


@register_model(task="detection", family="focus_detr", input_size=INPUT_SIZE)
@variant(Detector)
def focus_detr_swin_base_384() -> dict[str, Any]:
    """Swin-B of 384 pixels (timm), four levels."""
    return dict(backbone=_swin("swin_base_patch4_window12_384"), network=_NETWORK)


@register_model(task="detection", family="focus_detr", input_size=INPUT_SIZE)
@variant(Detector)
def focus_detr_swin_large_384() -> dict[str, Any]:
    """Swin-L of 384 pixels (timm), four levels."""
    return dict(backbone=_swin("swin_large_patch4_window12_384"), network=_NETWORK)


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
            dn_number=20,
            transformer=dict(**_SMALL, cascade=(1.0, 0.8, 0.6)),
        ),
    )
