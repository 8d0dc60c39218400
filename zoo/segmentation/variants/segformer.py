"""Named models: SegFormer (arXiv:2105.15203); sizes and scores in ``weights/index/segformer.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.registry import register_model, variant
from zoo.segmentation.segmenter import Segmenter

#: the crops that the models are trained on (B5 on ADE20K: 640)
INPUT_SIZE = 512


def segformer(backbone: str, dim: int) -> dict[str, Any]:
    """A MiT with maps of all stages and a head with ``dim`` channels."""
    return dict(backbone=dict(type=backbone, drop_path_rate=0.1), head=dict(type="segformer", dim=dim))


@register_model(task="segmentation", family="segformer", input_size=INPUT_SIZE)
@variant(Segmenter)
def segformer_b0() -> dict[str, Any]:
    """MiT-B0."""
    return segformer("mit_b0", 256)


@register_model(task="segmentation", family="segformer", input_size=INPUT_SIZE)
@variant(Segmenter)
def segformer_b1() -> dict[str, Any]:
    """MiT-B1."""
    return segformer("mit_b1", 256)


@register_model(task="segmentation", family="segformer", input_size=INPUT_SIZE)
@variant(Segmenter)
def segformer_b2() -> dict[str, Any]:
    """MiT-B2."""
    return segformer("mit_b2", 768)


@register_model(task="segmentation", family="segformer", input_size=INPUT_SIZE)
@variant(Segmenter)
def segformer_b3() -> dict[str, Any]:
    """MiT-B3."""
    return segformer("mit_b3", 768)


@register_model(task="segmentation", family="segformer", input_size=INPUT_SIZE)
@variant(Segmenter)
def segformer_b4() -> dict[str, Any]:
    """MiT-B4."""
    return segformer("mit_b4", 768)


@register_model(task="segmentation", family="segformer", input_size=INPUT_SIZE)
@variant(Segmenter)
def segformer_b5() -> dict[str, Any]:
    """MiT-B5."""
    return segformer("mit_b5", 768)
