"""Named models: FCN (arXiv:1411.4038); sizes and scores in ``weights/index/fcn.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.registry import register_model, variant
from zoo.segmentation.segmenter import Segmenter
from zoo.segmentation.variants.upernet import ADE_SIZE, NANO_CLASSES, NANO_SIZE


def fcn(backbone: str) -> dict[str, Any]:
    """Two convolutions over the last map; one over the third beside it."""
    auxiliary = dict(type="fcn", in_index=2, dim=256, num_convs=1, concat_input=False)
    return dict(backbone=dict(type=backbone, dilation=True), head=dict(type="fcn", dim=512), auxiliary=(auxiliary,))


@register_model(task="segmentation", family="fcn", input_size=NANO_SIZE)
@variant(Segmenter)
def fcn_davit_nano() -> dict[str, Any]:
    """DaViT-nano, for generated shapes; reads the first map."""
    return dict(backbone="davit_nano", head=dict(type="fcn", in_index=0, dim=64), num_classes=NANO_CLASSES)


@register_model(task="segmentation", family="fcn", input_size=ADE_SIZE)
@variant(Segmenter)
def fcn_resnet50() -> dict[str, Any]:
    """torchvision's ResNet-50 with a dilated last stage (stride 16), an auxiliary head on the third map."""
    return fcn("torchvision:resnet50")


@register_model(task="segmentation", family="fcn", input_size=ADE_SIZE)
@variant(Segmenter)
def fcn_resnet101() -> dict[str, Any]:
    """torchvision's ResNet-101 with a dilated last stage (stride 16), an auxiliary head on the third map."""
    return fcn("torchvision:resnet101")
