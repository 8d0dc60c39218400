"""Named models: MaskFormer (arXiv:2107.06278); sizes and scores in ``weights/index/maskformer.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.registry import register_model, variant
from zoo.segmentation.mask_segmenter import MaskSegmenter
from zoo.segmentation.variants._masks import ADE_SIZE, NANO_SIZE, nano_backbone, resnet, swin

_NETWORK = "zoo.segmentation.maskformer.MaskFormer"


@register_model(task="segmentation", family="maskformer", input_size=NANO_SIZE)
@variant(MaskSegmenter)
def maskformer_nano() -> dict[str, Any]:
    """For generated shapes: 2.5 million parameters."""
    return dict(
        backbone=nano_backbone(),
        network=dict(
            type=_NETWORK,
            num_classes=6,
            num_queries=20,
            dim=96,
            mask_dim=96,
            d_model=96,
            num_decoder_layers=4,
            dim_feedforward=384,
            dropout=0.0,
        ),
    )


@register_model(task="segmentation", family="maskformer", input_size=ADE_SIZE)
@variant(MaskSegmenter)
def maskformer_r50() -> dict[str, Any]:
    """ResNet-50, ADE20K's 150 classes."""
    return dict(backbone=resnet("resnet50"), network=dict(type=_NETWORK))


@register_model(task="segmentation", family="maskformer", input_size=ADE_SIZE)
@variant(MaskSegmenter)
def maskformer_swin_tiny() -> dict[str, Any]:
    """Swin-T, ADE20K's 150 classes."""
    return dict(backbone=swin("tiny"), network=dict(type=_NETWORK))


@register_model(task="segmentation", family="maskformer", input_size=ADE_SIZE)
@variant(MaskSegmenter)
def maskformer_swin_small() -> dict[str, Any]:
    """Swin-S, ADE20K's 150 classes."""
    return dict(backbone=swin("small"), network=dict(type=_NETWORK))


@register_model(task="segmentation", family="maskformer", input_size=640)
@variant(MaskSegmenter)
def maskformer_swin_base() -> dict[str, Any]:
    """Swin-B with windows of 12, ADE20K's 150 classes."""
    return dict(backbone=swin("base"), network=dict(type=_NETWORK))


@register_model(task="segmentation", family="maskformer", input_size=640)
@variant(MaskSegmenter)
def maskformer_swin_large() -> dict[str, Any]:
    """Swin-L with windows of 12, ADE20K's 150 classes."""
    return dict(backbone=swin("large"), network=dict(type=_NETWORK))
