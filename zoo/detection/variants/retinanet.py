"""Named models: RetinaNet (arXiv:1708.02002); sizes and scores in ``weights/index/retinanet.yaml``.

Backbones of this project are as their authors have them in detection: stochastic depth as in their recipes of 12
epochs, BiFormer with 16 x 16 regions, BiFormer and DaViT with a norm on each map, Agent-PVT with more agents.
"""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import AGENT_PVT_SIDES, INPUT_SIZE, NANO_SIZE, nano_backbone, resnet
from zoo.registry import register_model, variant

_NETWORK = "zoo.detection.retinanet.RetinaNet"


def _retinanet(backbone: dict[str, Any], **network: Any) -> dict[str, Any]:
    return dict(backbone=backbone, network=dict(type=_NETWORK, **network))


def _of(name: str, drop_path: float, **options: Any) -> dict[str, Any]:
    """Over the last three maps of a backbone of this project."""
    return _retinanet(dict(type=name, drop_path_rate=drop_path, out_indices=(1, 2, 3), **options))


@register_model(task="detection", family="retinanet", input_size=INPUT_SIZE)
@variant(Detector)
def retinanet_r50() -> dict[str, Any]:
    """ResNet-50."""
    return _retinanet(resnet("resnet50", (1, 2, 3)))


@register_model(task="detection", family="retinanet", input_size=INPUT_SIZE)
@variant(Detector)
def retinanet_davit_tiny() -> dict[str, Any]:
    """DaViT-T."""
    return _of("davit_tiny", 0.1, norm_outputs=True)


@register_model(task="detection", family="retinanet", input_size=INPUT_SIZE)
@variant(Detector)
def retinanet_davit_small() -> dict[str, Any]:
    """DaViT-S; the authors do not say its stochastic depth."""
    return _of("davit_small", 0.2, norm_outputs=True)


@register_model(task="detection", family="retinanet", input_size=INPUT_SIZE)
@variant(Detector)
def retinanet_davit_base() -> dict[str, Any]:
    """DaViT-B; the authors do not say its stochastic depth."""
    return _of("davit_base", 0.3, norm_outputs=True)


@register_model(task="detection", family="retinanet", input_size=INPUT_SIZE)
@variant(Detector)
def retinanet_biformer_small() -> dict[str, Any]:
    """BiFormer-S, 16 x 16 regions and normalised maps."""
    return _of("biformer_small", 0.2, n_win=16, extra_norms=True)


@register_model(task="detection", family="retinanet", input_size=INPUT_SIZE)
@variant(Detector)
def retinanet_biformer_base() -> dict[str, Any]:
    """BiFormer-B, 16 x 16 regions and normalised maps."""
    return _of("biformer_base", 0.3, n_win=16, extra_norms=True)


@register_model(task="detection", family="retinanet", input_size=INPUT_SIZE)
@variant(Detector)
def retinanet_agent_pvt_tiny() -> dict[str, Any]:
    """Agent-PVT-T."""
    return _of("agent_pvt_tiny", 0.1, pool_sides=AGENT_PVT_SIDES)


@register_model(task="detection", family="retinanet", input_size=INPUT_SIZE)
@variant(Detector)
def retinanet_agent_pvt_small() -> dict[str, Any]:
    """Agent-PVT-S."""
    return _of("agent_pvt_small", 0.1, pool_sides=AGENT_PVT_SIDES)


@register_model(task="detection", family="retinanet", input_size=INPUT_SIZE)
@variant(Detector)
def retinanet_agent_pvt_medium() -> dict[str, Any]:
    """Agent-PVT-M."""
    return _of("agent_pvt_medium", 0.2, pool_sides=AGENT_PVT_SIDES)


@register_model(task="detection", family="retinanet", input_size=INPUT_SIZE)
@variant(Detector)
def retinanet_agent_pvt_large() -> dict[str, Any]:
    """Agent-PVT-L."""
    return _of("agent_pvt_large", 0.3, pool_sides=AGENT_PVT_SIDES)


@register_model(task="detection", family="retinanet", input_size=NANO_SIZE)
@variant(Detector)
def retinanet_nano() -> dict[str, Any]:
    """For generated shapes: a small ResNet, levels of stride 8 to 32, anchors from 16 pixels on."""
    return _retinanet(
        nano_backbone(),
        num_classes=8,
        dim=64,
        strides=(8, 16, 32),
        stacked_convs=2,
        base_scale=2.0,
    )
