"""Named models: U-Nets and backbones with window attention upsampling (arXiv 2106.10637).

The paper names no sizes of a network that are known here, so that these are ours; ``weights/index/wau.yaml`` has their
parameters. ``upsample="linear"`` or ``"transposed"`` builds the same network with another enlargement.
"""

from __future__ import annotations

from typing import Any

from zoo.medical.backbone_unet import BackboneUNet
from zoo.medical.unet import UNet
from zoo.registry import register_model, variant


@register_model(task="medical", kind="segmentation", family="wau", input_size=256)
@variant(UNet)
def wau_unet_2d() -> dict[str, Any]:
    """U-Net of five levels, for images and slices."""
    return dict(num_classes=2, dims=2, widths=(32, 64, 128, 256, 512), upsample="wau")


@register_model(task="medical", kind="segmentation", family="wau", input_size=(128, 128, 128))
@variant(UNet)
def wau_unet_3d() -> dict[str, Any]:
    """U-Net of nnU-Net's widths (arXiv 1904.08128) for volumes; windows of 3 x 3 x 3 coarse places."""
    return dict(
        num_classes=2, dims=3, widths=(32, 64, 128, 256, 320, 320), upsample=dict(type="wau", window=3, num_heads=4)
    )


@register_model(task="medical", kind="segmentation", family="wau", input_size=96)
@variant(UNet)
def wau_unet_nano() -> dict[str, Any]:
    """For slices of generated volumes: 0.3 million parameters."""
    return dict(num_classes=5, dims=2, widths=(12, 24, 48, 96), upsample="wau", norm="batch", predictions=3)


@register_model(task="medical", kind="segmentation", family="wau", input_size=(48, 48, 32))
@variant(UNet)
def wau_unet_nano_3d() -> dict[str, Any]:
    """For patches of generated volumes."""
    return dict(
        num_classes=5,
        dims=3,
        widths=(8, 16, 32, 64),
        upsample=dict(type="wau", window=2, num_heads=2, mlp_ratio=1.0),
        predictions=3,
    )


@register_model(task="medical", kind="segmentation", family="wau", input_size=256)
@variant(BackboneUNet)
def wau_fpn_davit_tiny() -> dict[str, Any]:
    """DaViT-tiny and a pyramid decoder of 128 channels; another backbone is ``backbone="..."``."""
    return dict(num_classes=2, backbone="davit_tiny", dim=128, upsample="wau")


@register_model(task="medical", kind="segmentation", family="wau", input_size=96)
@variant(BackboneUNet)
def wau_fpn_davit_nano() -> dict[str, Any]:
    """DaViT-nano and a pyramid decoder of 32 channels."""
    return dict(num_classes=5, backbone="davit_nano", dim=32, upsample="wau")
