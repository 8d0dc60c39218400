"""DiNAT: NAT in which every other block looks at a wider, dilated neighborhood.

Dilated Neighborhood Attention Transformer (arXiv 2209.15001). Authors' code:
github.com/SHI-Labs/Neighborhood-Attention-Transformer (MIT). What differs here: see ``zoo.backbones.nat``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoo.backbones.nat import NAT
from zoo.registry import register_model, variant


class DiNAT(NAT):
    """NAT with dilations; the arguments are those of :class:`~zoo.backbones.nat.NAT`."""


def alternating(depths: Sequence[int], widest: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """For each stage dilations 1, w, 1, w, ... with the stage's widest w."""
    return tuple(tuple(w if j % 2 else 1 for j in range(depth)) for depth, w in zip(depths, widest))


_MINI, _LARGER = (3, 4, 6, 5), (3, 4, 18, 5)
_LARGE = dict(depths=_LARGER, num_heads=(6, 12, 24, 48), embed_dim=192, mlp_ratio=2, drop_path_rate=0.35)


@register_model(task="classification", family="dinat", input_size=32)
@variant(DiNAT)
def dinat_nano() -> dict[str, Any]:
    """For small images (32 x 32): three stages, windows of 3 x 3, dilated by 2 in every other block of the first."""
    return dict(
        depths=(2, 2, 2),
        num_heads=(2, 4, 8),
        embed_dim=48,
        kernel_size=3,
        drop_path_rate=0.0,
        dilations=alternating((2, 2, 2), (2, 1, 1)),
    )


@register_model(task="classification", family="dinat", input_size=224)
@variant(DiNAT)
def dinat_mini() -> dict[str, Any]:
    """DiNAT-Mini, 20.0 M parameters."""
    return dict(
        depths=_MINI,
        num_heads=(2, 4, 8, 16),
        embed_dim=64,
        mlp_ratio=3,
        drop_path_rate=0.2,
        dilations=alternating(_MINI, (8, 4, 2, 1)),
    )


@register_model(task="classification", family="dinat", input_size=224)
@variant(DiNAT)
def dinat_tiny() -> dict[str, Any]:
    """DiNAT-Tiny, 27.9 M parameters."""
    return dict(
        depths=_LARGER,
        num_heads=(2, 4, 8, 16),
        embed_dim=64,
        mlp_ratio=3,
        drop_path_rate=0.2,
        dilations=alternating(_LARGER, (8, 4, 2, 1)),
    )


@register_model(task="classification", family="dinat", input_size=224)
@variant(DiNAT)
def dinat_small() -> dict[str, Any]:
    """DiNAT-Small, 50.7 M parameters (no layer scale, unlike NAT-Small)."""
    return dict(
        depths=_LARGER,
        num_heads=(3, 6, 12, 24),
        embed_dim=96,
        mlp_ratio=2,
        drop_path_rate=0.3,
        dilations=alternating(_LARGER, (8, 4, 2, 1)),
    )


@register_model(task="classification", family="dinat", input_size=224)
@variant(DiNAT)
def dinat_base() -> dict[str, Any]:
    """DiNAT-Base, 89.8 M parameters."""
    return dict(
        depths=_LARGER,
        num_heads=(4, 8, 16, 32),
        embed_dim=128,
        mlp_ratio=2,
        drop_path_rate=0.5,
        layer_scale=1e-5,
        dilations=alternating(_LARGER, (8, 4, 2, 1)),
    )


@register_model(task="classification", family="dinat", input_size=224)
@variant(DiNAT)
def dinat_large() -> dict[str, Any]:
    """DiNAT-Large, 200.9 M parameters, first trained on ImageNet-22K."""
    return dict(_LARGE, dilations=alternating(_LARGER, (8, 4, 2, 1)))


@register_model(task="classification", family="dinat", input_size=384)
@variant(DiNAT)
def dinat_large_384() -> dict[str, Any]:
    """DiNAT-Large for images of 384 x 384: wider dilations, the same windows."""
    return dict(_LARGE, dilations=alternating(_LARGER, (13, 6, 3, 1)))


@register_model(task="classification", family="dinat", input_size=384)
@variant(DiNAT)
def dinat_large_384_11x11() -> dict[str, Any]:
    """DiNAT-Large for images of 384 x 384: windows of 11 x 11, the dilations of 224 x 224."""
    return dict(_LARGE, kernel_size=11, dilations=alternating(_LARGER, (8, 4, 2, 1)))
