"""Named models: MFDS-DETR (arXiv:2401.00926), for white blood cells; sizes in ``weights/index/mfds_detr.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import INPUT_SIZE, NANO_SIZE, nano_backbone, resnet
from zoo.registry import register_model, variant

_NETWORK = dict(type="zoo.detection.mfds_detr.MFDSDETR", num_classes=6, num_queries=100)
_SMALL = dict(d_model=128, nhead=8, num_encoder_layers=3, num_decoder_layers=3, dim_feedforward=256, dropout=0.0)


@register_model(task="detection", family="mfds_detr", input_size=INPUT_SIZE)
@variant(Detector)
def mfds_detr_r50() -> dict[str, Any]:
    """ResNet-50, four levels of HS-FPN."""
    return dict(backbone=resnet("resnet50", (1, 2, 3)), network=_NETWORK)


@register_model(task="detection", family="mfds_detr", input_size=INPUT_SIZE)
@variant(Detector)
def mfds_detr_r50_refine() -> dict[str, Any]:
    """The same with iterative box refinement."""
    return dict(backbone=resnet("resnet50", (1, 2, 3)), network=dict(**_NETWORK, with_box_refine=True))


@register_model(task="detection", family="mfds_detr", input_size=NANO_SIZE)
@variant(Detector)
def mfds_detr_nano() -> dict[str, Any]:
    """For generated shapes."""
    return dict(
        backbone=nano_backbone(),
        network=dict(**{**_NETWORK, "num_queries": 30}, with_box_refine=True, transformer=_SMALL),
    )
