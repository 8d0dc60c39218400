"""Named models: Semantic FPN (arXiv:1901.02446); sizes and scores in ``weights/index/semantic_fpn.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.registry import register_model, variant
from zoo.segmentation.segmenter import Segmenter
from zoo.segmentation.variants.upernet import ADE_SIZE, NANO_CLASSES, NANO_SIZE


def semantic_fpn(backbone: dict[str, Any], drop_path_rate: float = 0.0) -> dict[str, Any]:
    """The published form: 256 channels in the pyramid, 128 behind it."""
    return dict(backbone=dict(backbone, drop_path_rate=drop_path_rate), head="semantic_fpn")


def agent_pvt(name: str) -> dict[str, Any]:
    """An Agent-PVT with as many agents as its authors have for large images."""
    return dict(type=name, pool_sides=(12, 16, 28, 28))


@register_model(task="segmentation", family="semantic_fpn", input_size=NANO_SIZE)
@variant(Segmenter)
def semantic_fpn_davit_nano() -> dict[str, Any]:
    """DaViT-nano, for generated shapes."""
    return dict(
        backbone="davit_nano",
        head=dict(type="semantic_fpn", pyramid_dim=64, dim=64),
        num_classes=NANO_CLASSES,
    )


@register_model(task="segmentation", family="semantic_fpn", input_size=ADE_SIZE)
@variant(Segmenter)
def semantic_fpn_biformer_small() -> dict[str, Any]:
    """BiFormer-S with 8 x 8 regions and normalised maps (arXiv:2303.08810)."""
    return semantic_fpn(dict(type="biformer_small", n_win=8, extra_norms=True), drop_path_rate=0.15)


@register_model(task="segmentation", family="semantic_fpn", input_size=ADE_SIZE)
@variant(Segmenter)
def semantic_fpn_biformer_base() -> dict[str, Any]:
    """BiFormer-B with 8 x 8 regions and normalised maps (arXiv:2303.08810)."""
    return semantic_fpn(dict(type="biformer_base", n_win=8, extra_norms=True), drop_path_rate=0.3)


@register_model(task="segmentation", family="semantic_fpn", input_size=ADE_SIZE)
@variant(Segmenter)
def semantic_fpn_agent_pvt_tiny() -> dict[str, Any]:
    """Agent-PVT-T (arXiv:2312.08874)."""
    return semantic_fpn(agent_pvt("agent_pvt_tiny"), drop_path_rate=0.1)


@register_model(task="segmentation", family="semantic_fpn", input_size=ADE_SIZE)
@variant(Segmenter)
def semantic_fpn_agent_pvt_small() -> dict[str, Any]:
    """Agent-PVT-S (arXiv:2312.08874)."""
    return semantic_fpn(agent_pvt("agent_pvt_small"), drop_path_rate=0.1)


@register_model(task="segmentation", family="semantic_fpn", input_size=ADE_SIZE)
@variant(Segmenter)
def semantic_fpn_agent_pvt_medium() -> dict[str, Any]:
    """Agent-PVT-M (arXiv:2312.08874)."""
    return semantic_fpn(agent_pvt("agent_pvt_medium"), drop_path_rate=0.2)


@register_model(task="segmentation", family="semantic_fpn", input_size=ADE_SIZE)
@variant(Segmenter)
def semantic_fpn_agent_pvt_large() -> dict[str, Any]:
    """Agent-PVT-L (arXiv:2312.08874)."""
    return semantic_fpn(agent_pvt("agent_pvt_large"), drop_path_rate=0.1)
