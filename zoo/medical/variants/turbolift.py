"""Named models: the networks that Turbolift trains over a series of tasks; ``weights/index/turbolift.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.medical.additive_gate_unet import AdditiveGateUNet
from zoo.medical.deep_supervised_unet import DeepSupervisedUNet
from zoo.registry import register_model, variant


@register_model(task="medical", kind="segmentation", family="turbolift", input_size=512)
@variant(DeepSupervisedUNet)
def deep_supervised_unet() -> dict[str, Any]:
    """Multi-scale attention U-Net (arXiv 1810.07842) in the authors' size; logits, in training of four scales."""
    return dict(num_classes=2, activation="none")


@register_model(task="medical", kind="segmentation", family="turbolift", input_size=96)
@variant(DeepSupervisedUNet)
def deep_supervised_unet_nano() -> dict[str, Any]:
    """For slices of generated volumes."""
    return dict(num_classes=5, widths=(8, 16, 32, 64, 96), activation="none")


@register_model(task="medical", kind="segmentation", family="turbolift", input_size=(128, 128, 64))
@variant(AdditiveGateUNet)
def additive_gate_unet_3d() -> dict[str, Any]:
    """U-Net with additive gates for volumes, in the authors' size."""
    return dict(num_classes=2, dims=3)
