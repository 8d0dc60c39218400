"""Backbones that several families of detectors share."""

from __future__ import annotations

from typing import Any

#: the input of the published detectors: the shorter side (the longer one is at most 1333)
INPUT_SIZE = 800
#: of the nano detectors
NANO_SIZE = 128
#: agents along each side, stage by stage, that the authors of Agent-PVT pool for large images
AGENT_PVT_SIDES = (12, 16, 28, 28)


def resnet(name: str, out_indices: tuple[int, ...], dilation: bool = False) -> dict[str, Any]:
    """A ResNet with frozen normalisation, stem and first stage."""
    spec = dict(type="zoo.detection.resnet.ResNetBackbone", name=name, out_indices=out_indices)
    return {**spec, "dilation": True} if dilation else spec


_SWINS: dict[str, dict[str, Any]] = {
    "tiny": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7),
    "small": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), window_size=7),
    "base_384": dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=12),
    "large_384": dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12),
}


def swin(size: str, out_indices: tuple[int, ...], drop_path_rate: float) -> dict[str, Any]:
    """A Swin with a norm on each map, as the published detectors have it: windows of 7, or of 12 (``..._384``)."""
    spec = dict(type="zoo.backbones.swin.Swin", **_SWINS[size])
    return {**spec, "out_indices": out_indices, "drop_path_rate": drop_path_rate}


def nano_backbone(one_map: bool = False) -> dict[str, Any]:
    """timm's ResNet-10-T with half of its channels, for images of generated shapes.

    Args:
        one_map: give the last map only, at stride 16 (the last stage is dilated), rather than three up to stride 32.
    """
    spec = dict(type="zoo.backbones.timm.TimmBackbone", model_name="resnet10t", channels=(32, 64, 128, 256))
    return {**spec, "out_indices": (4,), "output_stride": 16} if one_map else {**spec, "out_indices": (2, 3, 4)}
