"""Named classifiers: CT-Scroll (arXiv 2503.20652), AG-Sononet (1808.08114), Guided Context Gating (2406.13126)."""

from __future__ import annotations

from typing import Any

from zoo.medical.ct_scroll import CTScroll
from zoo.medical.guided_context_gating import GuidedContextClassifier
from zoo.medical.sononet import AGSononet
from zoo.registry import register_model, variant


@register_model(task="medical", kind="classification", family="ct_scroll", input_size=(240, 480, 480))
@variant(CTScroll)
def ct_scroll() -> dict[str, Any]:
    """18 findings of a chest CT, slabs encoded by a ResNet-18; of the authors' size."""
    return dict(num_classes=18)


@register_model(task="medical", kind="classification", family="ct_scroll", input_size=(12, 32, 32))
@variant(CTScroll)
def ct_scroll_nano() -> dict[str, Any]:
    """For generated scans."""
    return dict(num_classes=3, windows=(2,), num_heads=4, stem=8, planes=(8, 16, 16, 32), layers=(1, 1, 1, 1))


@register_model(task="medical", kind="classification", family="attention_unet", input_size=224)
@variant(AGSononet)
def ag_sononet() -> dict[str, Any]:
    """Two gates, one classifier on each vector; the authors' ``sononet_grid_attention`` with scale 8."""
    return dict(in_chans=1, num_classes=14, widths=(8, 16, 32, 64), aggregation="mean")


@register_model(task="medical", kind="classification", family="guided_context_gating", input_size=512)
@variant(GuidedContextClassifier)
def gcg_davit_tiny() -> dict[str, Any]:
    """Seven grades of retinopathy over DaViT-tiny (the authors have an EfficientNetV2-B0 of Keras)."""
    return dict(backbone="davit_tiny", num_classes=7, normalised_context=True)


@register_model(task="medical", kind="classification", family="guided_context_gating", input_size=32)
@variant(GuidedContextClassifier)
def gcg_davit_nano() -> dict[str, Any]:
    """For digits."""
    return dict(backbone="davit_nano", num_classes=10, normalised_context=True)
