"""Named models: MONAI's networks as baselines; sizes are in ``weights/index/monai.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.medical.baselines import MonaiDynUNet, MonaiSwinUNETR, MonaiUNet
from zoo.registry import register_model, variant

_VOLUME = (96, 96, 96)


@register_model(task="medical", kind="segmentation", family="monai", input_size=256)
@variant(MonaiUNet)
def monai_unet_2d() -> dict[str, Any]:
    """Residual U-Net for images and slices."""
    return dict(dims=2)


@register_model(task="medical", kind="segmentation", family="monai", input_size=_VOLUME)
@variant(MonaiUNet)
def monai_unet_3d() -> dict[str, Any]:
    """Residual U-Net for volumes."""
    return dict(dims=3)


@register_model(task="medical", kind="segmentation", family="monai", input_size=512)
@variant(MonaiDynUNet)
def monai_dynunet_2d() -> dict[str, Any]:
    """nnU-Net's network for images and slices (arXiv 1904.08128)."""
    return dict(dims=2, widths=(32, 64, 128, 256, 512, 512, 512))


@register_model(task="medical", kind="segmentation", family="monai", input_size=(128, 128, 128))
@variant(MonaiDynUNet)
def monai_dynunet_3d() -> dict[str, Any]:
    """nnU-Net's network for volumes (arXiv 1904.08128)."""
    return dict(dims=3, widths=(32, 64, 128, 256, 320, 320))


@register_model(task="medical", kind="segmentation", family="monai", input_size=_VOLUME)
@variant(MonaiSwinUNETR)
def monai_swin_unetr_3d() -> dict[str, Any]:
    """Swin-UNETR with 48 channels (arXiv 2201.01266)."""
    return dict(dims=3, feature_size=48)


@register_model(task="medical", kind="segmentation", family="monai", input_size=96)
@variant(MonaiUNet)
def monai_unet_nano() -> dict[str, Any]:
    """Residual U-Net for slices of generated volumes."""
    return dict(num_classes=5, dims=2, widths=(12, 24, 48, 96), num_res_units=1, norm="BATCH")


@register_model(task="medical", kind="segmentation", family="monai", input_size=96)
@variant(MonaiDynUNet)
def monai_dynunet_nano() -> dict[str, Any]:
    """nnU-Net's network for slices of generated volumes."""
    return dict(num_classes=5, dims=2, widths=(12, 24, 48, 96), deep_supervision=1)


@register_model(task="medical", kind="segmentation", family="monai", input_size=96)
@variant(MonaiSwinUNETR)
def monai_swin_unetr_nano() -> dict[str, Any]:
    """Swin-UNETR for slices of generated volumes."""
    return dict(num_classes=5, dims=2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
