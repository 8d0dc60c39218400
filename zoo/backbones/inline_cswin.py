"""InLine-CSWin: the CSWin Transformer with InLine attention over the whole map in its first stages.

Bridging the Divide: Reconsidering Softmax and Linear Attention (NeurIPS 2024, arXiv 2412.06590); CSWin (CVPR 2022,
arXiv 2107.00652). Authors' code: github.com/LeapLabTHU/InLine (no licence file; this follows the papers and recorded
results). Difference: every image size is accepted; maps are padded for the strips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoo.backbones.hybrid_cswin import HybridCSWin
from zoo.layers.pre_norm_block import PreNormBlock
from zoo.mixers.inline import InLineAttention
from zoo.registry import register_model, variant


class InLineCSWinBlock(PreNormBlock):
    """A block in which the convolution's weights are predicted from the mean of its input before the norm."""

    def mix(self, x: Tensor, *context: Any) -> Tensor:
        if not isinstance(self.attn, InLineAttention):
            return self.attn(x)
        size = (x.shape[1], x.shape[2])
        mean = context[0].mean((1, 2))  # [B, C]
        return self.attn.forward_tokens(x.flatten(1, 2), size, summary=mean).unflatten(1, size)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        return super().forward(x, x)


class InLineCSWin(HybridCSWin):
    """InLine-CSWin: :class:`~zoo.backbones.hybrid_cswin.HybridCSWin` with InLine attention.

    Args:
        la_split_size: for each stage, the side of the map that an InLine block covers: there are no strips, so it must
            be the map's that ``img_size`` leads to (the last stage's is not read).
        attn_type: a letter a stage, I (InLine), S (softmax) or M; see
            :func:`~zoo.backbones.hybrid_base.block_kinds`.
        shared: every other argument of :class:`~zoo.backbones.hybrid_cswin.HybridCSWin`.

    Raises:
        ValueError: an argument outside what is accepted; InLine attention in strips, for which the method predicts no
            convolution.
    """

    letters = "IS"
    block = InLineCSWinBlock

    def __init__(self, la_split_size: Sequence[int] = (56, 28, 14, 7), attn_type: str = "IISS", **shared: Any):
        super().__init__(la_split_size=la_split_size, attn_type=attn_type, **shared)

    def linear_mixer(
        self, stage: int, dim: int, num_heads: int, split_size: int, one_branch: bool | None, qkv_bias: bool
    ) -> nn.Module:
        if not one_branch and self.grids[stage] != (split_size, split_size):
            height, width = self.grids[stage]
            raise ValueError(
                f"la_split_size={split_size} of stage {stage} with InLine attention: it must be the side of the map, "
                f"here {height} x {width}"
            )
        return InLineAttention(dim, num_heads, qkv_bias=qkv_bias, lepe=True)


@register_model(task="classification", family="inline", input_size=224)
@variant(InLineCSWin)
def inline_cswin_tiny() -> dict[str, Any]:
    """InLine-CSWin-T, 20.6 M parameters."""
    return dict(depth=(2, 4, 18, 1))


@register_model(task="classification", family="inline", input_size=224)
@variant(InLineCSWin)
def inline_cswin_small() -> dict[str, Any]:
    """InLine-CSWin-S, 33.0 M parameters."""
    return dict(depth=(3, 6, 29, 2))


@register_model(task="classification", family="inline", input_size=224)
@variant(InLineCSWin)
def inline_cswin_base() -> dict[str, Any]:
    """InLine-CSWin-B, 73.4 M parameters."""
    return dict(embed_dim=96, depth=(3, 6, 29, 2), num_heads=(4, 8, 16, 32))


@register_model(task="classification", family="inline", input_size=384)
@variant(InLineCSWin)
def inline_cswin_base_384() -> dict[str, Any]:
    """InLine-CSWin-B for images of 384 x 384, 73.4 M parameters."""
    return dict(
        img_size=384,
        embed_dim=96,
        depth=(3, 6, 29, 2),
        num_heads=(4, 8, 16, 32),
        split_size=(1, 2, 12, 12),
        la_split_size=(96, 48, 24, 12),
    )
