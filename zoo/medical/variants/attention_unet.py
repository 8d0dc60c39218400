"""Named models: Attention U-Net (arXiv 1804.03999, 1808.08114); sizes are in ``weights/index/attention_unet.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.medical.attention_unet import AttentionUNet, GridAttentionUNet
from zoo.registry import register_model, variant

#: The authors' crop of a volume.
_VOLUME = (160, 160, 96)


@register_model(task="medical", kind="segmentation", family="attention_unet", input_size=_VOLUME)
@variant(AttentionUNet)
def attention_unet_3d() -> dict[str, Any]:
    """Two gates a level and deep supervision inside; the authors' ``unet_CT_multi_att_dsv_3D``."""
    return dict(num_classes=4, dims=3, gates=2)


@register_model(task="medical", kind="segmentation", family="attention_unet", input_size=_VOLUME)
@variant(AttentionUNet)
def attention_unet_single_3d() -> dict[str, Any]:
    """One gate a level; the authors' ``unet_CT_single_att_dsv_3D``."""
    return dict(num_classes=4, dims=3, gates=1)


@register_model(task="medical", kind="segmentation", family="attention_unet", input_size=_VOLUME)
@variant(AttentionUNet)
def attention_unet_ungated_3d() -> dict[str, Any]:
    """The same network without gates; the authors' ``unet_CT_dsv_3D``."""
    return dict(num_classes=4, dims=3, gates=0)


@register_model(task="medical", kind="segmentation", family="attention_unet", input_size=_VOLUME)
@variant(GridAttentionUNet)
def grid_attention_unet_3d() -> dict[str, Any]:
    """Slices of a volume, all gates steered by the centre; the authors' ``unet_grid_attention_3D``."""
    return dict(num_classes=4, dims=3)


@register_model(task="medical", kind="segmentation", family="attention_unet", input_size=256)
@variant(AttentionUNet)
def attention_unet_2d() -> dict[str, Any]:
    """Two gates a level, for images and slices."""
    return dict(num_classes=4, dims=2, gates=2)


@register_model(task="medical", kind="segmentation", family="attention_unet", input_size=256)
@variant(GridAttentionUNet)
def grid_attention_unet_2d() -> dict[str, Any]:
    """One gate a level, steered by the centre, for images and slices."""
    return dict(num_classes=4, dims=2)


@register_model(task="medical", kind="segmentation", family="attention_unet", input_size=96)
@variant(AttentionUNet)
def attention_unet_nano() -> dict[str, Any]:
    """For slices of generated volumes: 0.6 million parameters."""
    return dict(num_classes=5, dims=2, gates=2, widths=(8, 16, 32, 64, 128))


@register_model(task="medical", kind="segmentation", family="attention_unet", input_size=(48, 48, 32))
@variant(AttentionUNet)
def attention_unet_nano_3d() -> dict[str, Any]:
    """For patches of generated volumes."""
    return dict(num_classes=5, dims=3, gates=1, widths=(8, 16, 32, 48, 64))
