"""Named models: RelationNet++ (arXiv:2010.15831); sizes and scores in ``weights/index/relationnetpp.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.detection.detector import Detector
from zoo.detection.variants._parts import INPUT_SIZE, resnet
from zoo.registry import register_model, variant

_SELECTION = dict(method="index", cross_level_topk=50, cross_level_selection=True)


def _bvr(head: str, base: int, **options: Any) -> dict[str, Any]:
    return dict(
        type="zoo.detection.relationnetpp.RelationNetPP",
        head=head,
        selection=_SELECTION,
        location=dict(base_size=(base, base), log_scale=True),
        **options,
    )


@register_model(task="detection", family="relationnetpp", input_size=INPUT_SIZE)
@variant(Detector)
def relationnetpp_retinanet_r50() -> dict[str, Any]:
    """RetinaNet, ResNet-50: the authors' published model without deformable convolutions."""
    return dict(backbone=resnet("resnet50", (1, 2, 3)), network=_bvr("retina", 400))


@register_model(task="detection", family="relationnetpp", input_size=INPUT_SIZE)
@variant(Detector)
def relationnetpp_fcos_r50() -> dict[str, Any]:
    """FCOS as the authors have it, on a ResNet-50."""
    return dict(
        backbone=resnet("resnet50", (1, 2, 3)),
        network=_bvr(
            "fcos",
            300,
            groups=None,
            neck=dict(groups=None, extra="on_output"),
            keypoints=dict(logits_convs=0),
        ),
    )


@register_model(task="detection", family="relationnetpp", input_size=INPUT_SIZE)
@variant(Detector)
def relationnetpp_atss_r50() -> dict[str, Any]:
    """ATSS as the authors have it, on a ResNet-50."""
    return dict(
        backbone=resnet("resnet50", (1, 2, 3)),
        network=_bvr(
            "atss",
            300,
            neck=dict(groups=None, extra="on_output"),
            keypoints=dict(groups=None),
            shared_outer=True,
        ),
    )
