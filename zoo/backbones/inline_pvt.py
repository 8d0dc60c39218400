"""InLine-PVT: the Pyramid Vision Transformer with InLine attention.

Bridging the Divide: Reconsidering Softmax and Linear Attention (NeurIPS 2024, arXiv 2412.06590); PVT (ICCV 2021, arXiv
2102.12122). Authors' code: github.com/LeapLabTHU/InLine (no licence file; this follows the papers and recorded
results). Difference: every image size is accepted; tables of positions are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.backbones.hybrid_pvt import HybridPVT
from zoo.mixers.inline import InLineAttention
from zoo.registry import register_model, variant


class InLinePVT(HybridPVT):
    """InLine-PVT: :class:`~zoo.backbones.hybrid_pvt.HybridPVT` with InLine attention, without reduction of the keys.

    Args:
        num_heads: heads of each stage, twice PVT's.
        attn_type: for each stage "I", InLine attention, or "S", PVT's own.
        shared: every other argument of :class:`~zoo.backbones.hybrid_pvt.HybridPVT`.

    Raises:
        ValueError: an argument outside what is accepted.
    """

    letters = "IS"

    def __init__(self, num_heads: Sequence[int] = (2, 4, 10, 16), attn_type: str = "IIII", **shared: Any):
        super().__init__(num_heads=num_heads, attn_type=attn_type, **shared)

    def linear_mixer(self, stage: int, dim: int, num_heads: int, qkv_bias: bool) -> nn.Module:
        return InLineAttention(dim, num_heads, qkv_bias=qkv_bias, separate_projections=True)


@register_model(task="classification", family="inline", input_size=224)
@variant(InLinePVT)
def inline_pvt_tiny() -> dict[str, Any]:
    """InLine-PVT-T, 12.0 M parameters."""
    return dict(depths=(2, 2, 2, 2))


@register_model(task="classification", family="inline", input_size=224)
@variant(InLinePVT)
def inline_pvt_small() -> dict[str, Any]:
    """InLine-PVT-S, 21.6 M parameters."""
    return dict(depths=(3, 4, 6, 3))


@register_model(task="classification", family="inline", input_size=224)
@variant(InLinePVT)
def inline_pvt_medium() -> dict[str, Any]:
    """InLine-PVT-M, 37.6 M parameters."""
    return dict(depths=(3, 4, 18, 3))


@register_model(task="classification", family="inline", input_size=224)
@variant(InLinePVT)
def inline_pvt_large() -> dict[str, Any]:
    """InLine-PVT-L, 51.2 M parameters."""
    return dict(depths=(3, 8, 27, 3))
