"""InLine-DeiT: a plain vision transformer with InLine attention.

Bridging the Divide: Reconsidering Softmax and Linear Attention (NeurIPS 2024, arXiv 2412.06590); DeiT (ICML 2021, arXiv
2012.12877). Authors' code: github.com/LeapLabTHU/InLine (no licence file; this follows the papers and recorded
results). Difference: every image size is accepted; the table of positions is interpolated.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.backbones.hybrid_deit import HybridDeiT
from zoo.mixers.inline import InLineAttention
from zoo.registry import register_model, variant


class InLineDeiT(HybridDeiT):
    """InLine-DeiT: :class:`~zoo.backbones.hybrid_deit.HybridDeiT` with InLine attention in every block.

    The class token attends and is attended, and counts in the mean that predicts the convolution.

    Args:
        num_heads: attention heads, about twice DeiT's.
        shared: every other argument of :class:`~zoo.backbones.hybrid_deit.HybridDeiT`.
    """

    def __init__(self, num_heads: int = 10, **shared: Any):
        super().__init__(num_heads=num_heads, **shared)

    def block_mixer(self, block: int, dim: int, num_heads: int, qkv_bias: bool) -> nn.Module:
        return InLineAttention(dim, num_heads, qkv_bias=qkv_bias, takes_prefix=True)


@register_model(task="classification", family="inline", input_size=224)
@variant(InLineDeiT)
def inline_deit_tiny() -> dict[str, Any]:
    """InLine-DeiT-T, 6.5 M parameters."""
    return dict(embed_dim=192, num_heads=6)


@register_model(task="classification", family="inline", input_size=288)
@variant(InLineDeiT)
def inline_deit_small() -> dict[str, Any]:
    """InLine-DeiT-S, for images of 288 x 288, 16.7 M parameters."""
    return dict(img_size=288, embed_dim=320, num_heads=10)


@register_model(task="classification", family="inline", input_size=448)
@variant(InLineDeiT)
def inline_deit_base() -> dict[str, Any]:
    """InLine-DeiT-B, for images of 448 x 448, 23.8 M parameters."""
    return dict(img_size=448, embed_dim=384, num_heads=12)
