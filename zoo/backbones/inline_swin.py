"""InLine-Swin: the Swin Transformer with InLine attention, whose windows are as large as the map.

Bridging the Divide: Reconsidering Softmax and Linear Attention (NeurIPS 2024, arXiv 2412.06590); Swin (ICCV 2021, arXiv
2103.14030). Authors' code: github.com/LeapLabTHU/InLine (no licence file; this follows the papers and recorded
results). Difference: every image size is accepted; maps are padded.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.backbones.hybrid_swin import HybridSwin
from zoo.mixers.inline_window import InLineWindowAttention
from zoo.registry import register_model, variant


class InLineSwin(HybridSwin):
    """InLine-Swin: :class:`~zoo.backbones.hybrid_swin.HybridSwin` with InLine attention.

    Shifted InLine windows mix both sides of the map's edge, as the authors' do.

    Args:
        attn_type: a letter a stage, I (InLine), S (softmax) or M; see
            :func:`~zoo.backbones.hybrid_base.block_kinds`.
        shared: every other argument of :class:`~zoo.backbones.hybrid_swin.HybridSwin`.

    Raises:
        ValueError: an argument outside what is accepted.
    """

    letters = "IS"

    def __init__(self, attn_type: str = "IIIS", **shared: Any):
        super().__init__(attn_type=attn_type, **shared)

    def linear_mixer(
        self, stage: int, dim: int, num_heads: int, window: int, shift: int, qkv_bias: bool, whole_map: bool
    ) -> nn.Module:
        return InLineWindowAttention(dim, num_heads, window, shift, qkv_bias=qkv_bias, whole_map=whole_map)

    def shift_record(self, grid: tuple[int, int], window: int) -> tuple[int, ...]:
        return (*grid, window)  # no weight of InLine attention tells its window


@register_model(task="classification", family="inline", input_size=32)
@variant(InLineSwin)
def inline_swin_nano() -> dict[str, Any]:
    """For small images (32 x 32): two stages of InLine attention and one of softmax windows, 1.0 M parameters."""
    return dict(img_size=32, embed_dim=48, depths=(1, 2, 1), num_heads=(2, 4, 8), window_size=8, attn_type="IIS")


@register_model(task="classification", family="inline", input_size=224)
@variant(InLineSwin)
def inline_swin_tiny() -> dict[str, Any]:
    """InLine-Swin-T, 29.2 M parameters."""
    return dict(depths=(2, 2, 6, 2), attn_type="IIIS")


@register_model(task="classification", family="inline", input_size=224)
@variant(InLineSwin)
def inline_swin_small() -> dict[str, Any]:
    """InLine-Swin-S, 49.8 M parameters."""
    return dict(depths=(2, 2, 18, 2), attn_type="IISS")


@register_model(task="classification", family="inline", input_size=224)
@variant(InLineSwin)
def inline_swin_base() -> dict[str, Any]:
    """InLine-Swin-B, 88.4 M parameters."""
    return dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), attn_type="IIMS2")


@register_model(task="classification", family="inline", input_size=384)
@variant(InLineSwin)
def inline_swin_base_384() -> dict[str, Any]:
    """InLine-Swin-B for images of 384 x 384, 88.5 M parameters."""
    return dict(
        img_size=384,
        embed_dim=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        window_size=96,
        attn_type="IIMS2",
    )
