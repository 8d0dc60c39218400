"""Named models: Mask R-CNN (arXiv:1703.06870) and Faster R-CNN (arXiv:1506.01497) with a feature pyramid.

Sizes and scores are in ``weights/index/mask_rcnn.yaml`` and ``weights/index/faster_rcnn.yaml``. Backbones of this
project are as their authors have them in detection: stochastic depth as in their recipes of 12 epochs, BiFormer with
16 x 16 regions, Agent-PVT and Agent-Swin with more agents, BiFormer, DaViT and Agent-Swin with a norm on each map.
"""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import AGENT_PVT_SIDES, INPUT_SIZE, NANO_SIZE, nano_backbone
from zoo.registry import register_model, variant

_NETWORK = "zoo.detection.mask_rcnn.MaskRCNN"
#: for images of 128 pixels with objects of 12 to 90; further levels have hardly a place in them
_SMALL = dict(
    num_classes=8,
    dim=64,
    canonical_scale=112,
    rpn_candidates=(300, 200),
    rpn_proposals=(200, 100),
    rpn_samples=128,
    roi_samples=64,
    box_channels=256,
    mask_convs=2,
)


def _rcnn(backbone: dict[str, Any], **network: Any) -> dict[str, Any]:
    return dict(backbone=backbone, network=dict(type=_NETWORK, **network))


def _agent_swin(name: str) -> dict[str, Any]:
    return dict(type=name, pool_sides=(9, 12, 14, 7), norm_outputs=True, drop_path_rate=0.1)


def _nano_maps() -> dict[str, Any]:
    return {**nano_backbone(), "out_indices": (1, 2, 3, 4)}


def _torchvision(**options: Any) -> dict[str, Any]:
    """torchvision's ResNet-50; with it go 90 classes, COCO's category ids less one (there are gaps)."""
    spec = dict(type="zoo.detection.resnet.ResNetBackbone", name="resnet50", out_indices=(0, 1, 2, 3))
    return {**spec, **options}


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_r50() -> dict[str, Any]:
    """ResNet-50: torchvision's ``maskrcnn_resnet50_fpn``, whose published weights want no epsilon in the norms."""
    return _rcnn(_torchvision(norm_eps=0.0), num_classes=90)


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_r50_v2() -> dict[str, Any]:
    """ResNet-50 with normalised heads: torchvision's ``maskrcnn_resnet50_fpn_v2``."""
    return _rcnn(
        _torchvision(frozen_norm=False, frozen_stages=-1),
        num_classes=90,
        neck=dict(batch_norm=True),
        rpn_convs=2,
        box_head="conv",
        mask_norm=True,
    )


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_davit_tiny() -> dict[str, Any]:
    """DaViT-T."""
    return _rcnn(dict(type="davit_tiny", norm_outputs=True, drop_path_rate=0.1))


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_davit_small() -> dict[str, Any]:
    """DaViT-S; the authors do not say its stochastic depth."""
    return _rcnn(dict(type="davit_small", norm_outputs=True, drop_path_rate=0.2))


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_davit_base() -> dict[str, Any]:
    """DaViT-B; the authors do not say its stochastic depth."""
    return _rcnn(dict(type="davit_base", norm_outputs=True, drop_path_rate=0.3))


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_biformer_small() -> dict[str, Any]:
    """BiFormer-S, 16 x 16 regions and normalised maps."""
    return _rcnn(dict(type="biformer_small", n_win=16, extra_norms=True, drop_path_rate=0.2))


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_biformer_base() -> dict[str, Any]:
    """BiFormer-B, 16 x 16 regions and normalised maps."""
    return _rcnn(dict(type="biformer_base", n_win=16, extra_norms=True, drop_path_rate=0.3))


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_agent_pvt_tiny() -> dict[str, Any]:
    """Agent-PVT-T."""
    return _rcnn(dict(type="agent_pvt_tiny", pool_sides=AGENT_PVT_SIDES, drop_path_rate=0.1))


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_agent_pvt_small() -> dict[str, Any]:
    """Agent-PVT-S."""
    return _rcnn(dict(type="agent_pvt_small", pool_sides=AGENT_PVT_SIDES, drop_path_rate=0.2))


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_agent_pvt_medium() -> dict[str, Any]:
    """Agent-PVT-M."""
    return _rcnn(dict(type="agent_pvt_medium", pool_sides=AGENT_PVT_SIDES, drop_path_rate=0.1))


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_agent_pvt_large() -> dict[str, Any]:
    """Agent-PVT-L."""
    return _rcnn(dict(type="agent_pvt_large", pool_sides=AGENT_PVT_SIDES, drop_path_rate=0.2))


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_agent_swin_tiny() -> dict[str, Any]:
    """Agent-Swin-T."""
    return _rcnn(_agent_swin("agent_swin_tiny"))


@register_model(task="detection", family="mask_rcnn", input_size=INPUT_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_agent_swin_small() -> dict[str, Any]:
    """Agent-Swin-S."""
    return _rcnn(_agent_swin("agent_swin_small"))


@register_model(task="detection", family="mask_rcnn", input_size=NANO_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_nano() -> dict[str, Any]:
    """For generated shapes: a small ResNet with maps of stride 4 to 32, anchors of 8 to 80 pixels."""
    return _rcnn(_nano_maps(), strides=(4, 8, 16, 32, 64), anchor_sizes=(8, 16, 32, 56, 80), **_SMALL)


@register_model(task="detection", family="mask_rcnn", input_size=NANO_SIZE, masks=True)
@variant(Detector)
def mask_rcnn_davit_nano() -> dict[str, Any]:
    """For generated shapes: DaViT-nano with its three maps."""
    return _rcnn(
        dict(type="davit_nano", norm_outputs=True),
        strides=(4, 8, 16, 32),
        anchor_sizes=(12, 24, 48, 80),
        **_SMALL,
    )


@register_model(task="detection", family="faster_rcnn", input_size=INPUT_SIZE)
@variant(Detector)
def faster_rcnn_r50() -> dict[str, Any]:
    """ResNet-50: torchvision's ``fasterrcnn_resnet50_fpn``, whose published weights want no epsilon in the norms."""
    return _rcnn(_torchvision(norm_eps=0.0), masks=False, num_classes=90)


@register_model(task="detection", family="faster_rcnn", input_size=INPUT_SIZE)
@variant(Detector)
def faster_rcnn_davit_tiny() -> dict[str, Any]:
    """DaViT-T."""
    return _rcnn(dict(type="davit_tiny", norm_outputs=True, drop_path_rate=0.1), masks=False)


@register_model(task="detection", family="faster_rcnn", input_size=NANO_SIZE)
@variant(Detector)
def faster_rcnn_nano() -> dict[str, Any]:
    """For generated shapes: a small ResNet with maps of stride 4 to 32, anchors of 8 to 80 pixels."""
    return _rcnn(_nano_maps(), masks=False, strides=(4, 8, 16, 32, 64), anchor_sizes=(8, 16, 32, 56, 80), **_SMALL)
