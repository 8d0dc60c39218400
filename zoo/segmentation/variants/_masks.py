"""Backbones that the families of mask classification share."""

from __future__ import annotations

from typing import Any

#: the input of the published models: the crops that they are trained on
INPUT_SIZE = 1024
#: of MaskFormer on ADE20K
ADE_SIZE = 512
#: of the nano models
NANO_SIZE = 128

#: size -> width of the first stage, depths, heads, window
_SWINS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int]] = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}


def resnet(name: str) -> dict[str, Any]:
    """A ResNet with frozen normalisation, all of its stages trained."""
    return dict(type="zoo.detection.resnet.ResNetBackbone", name=name, out_indices=(0, 1, 2, 3), frozen_stages=-1)


def swin(size: str) -> dict[str, Any]:
    """A Swin with four normalised maps."""
    width, depths, heads, window = _SWINS[size]
    return dict(
        type="zoo.backbones.swin.Swin",
        embed_dim=width,
        depths=depths,
        num_heads=heads,
        window_size=window,
        drop_path_rate=0.3,
    )


def nano_backbone() -> dict[str, Any]:
    """timm's ResNet-10-T with half of its channels and maps of strides 4 to 32, for images of generated shapes."""
    return dict(
        type="zoo.backbones.timm.TimmBackbone",
        model_name="resnet10t",
        channels=(32, 64, 128, 256),
        out_indices=(1, 2, 3, 4),
    )
