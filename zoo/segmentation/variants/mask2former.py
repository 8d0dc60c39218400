"""Named models: Mask2Former (arXiv:2112.01527); sizes and scores in ``weights/index/mask2former.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.registry import register_model, variant
from zoo.segmentation.mask_segmenter import MaskSegmenter
from zoo.segmentation.variants._masks import INPUT_SIZE, NANO_SIZE, nano_backbone, resnet, swin

_NETWORK = "zoo.segmentation.mask2former.Mask2Former"


@register_model(task="segmentation", family="mask2former", input_size=NANO_SIZE)
@variant(MaskSegmenter)
def mask2former_nano() -> dict[str, Any]:
    """For generated shapes: 2.6 million parameters."""
    return dict(
        backbone=nano_backbone(),
        network=dict(
            type=_NETWORK,
            num_classes=6,
            num_queries=20,
            dim=96,
            mask_dim=96,
            num_points=1024,
            pixel_decoder=dict(num_layers=3, d_ffn=256),
            decoder=dict(num_layers=6, d_ffn=384),
        ),
    )


@register_model(task="segmentation", family="mask2former", input_size=INPUT_SIZE)
@variant(MaskSegmenter)
def mask2former_r50() -> dict[str, Any]:
    """ResNet-50, COCO's 133 panoptic classes."""
    return dict(backbone=resnet("resnet50"), network=dict(type=_NETWORK))


@register_model(task="segmentation", family="mask2former", input_size=INPUT_SIZE)
@variant(MaskSegmenter)
def mask2former_swin_tiny() -> dict[str, Any]:
    """Swin-T, COCO's 133 panoptic classes."""
    return dict(backbone=swin("tiny"), network=dict(type=_NETWORK))


@register_model(task="segmentation", family="mask2former", input_size=INPUT_SIZE)
@variant(MaskSegmenter)
def mask2former_swin_small() -> dict[str, Any]:
    """Swin-S, COCO's 133 panoptic classes."""
    return dict(backbone=swin("small"), network=dict(type=_NETWORK))


@register_model(task="segmentation", family="mask2former", input_size=INPUT_SIZE)
@variant(MaskSegmenter)
def mask2former_swin_base() -> dict[str, Any]:
    """Swin-B with windows of 12, COCO's 133 panoptic classes."""
    return dict(backbone=swin("base"), network=dict(type=_NETWORK))


@register_model(task="segmentation", family="mask2former", input_size=INPUT_SIZE)
@variant(MaskSegmenter)
def mask2former_swin_large() -> dict[str, Any]:
    """Swin-L with windows of 12 and 200 queries, COCO's 133 panoptic classes."""
    return dict(backbone=swin("large"), network=dict(type=_NETWORK, num_queries=200))
