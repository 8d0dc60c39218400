"""Agent-PVT: the Pyramid Vision Transformer with agent attention.

Agent Attention: On the Integration of Softmax and Linear Attention (ECCV 2024, arXiv 2312.08874); PVT (ICCV 2021,
arXiv 2102.12122). Authors' code: github.com/LeapLabTHU/Agent-Attention (no licence file; this follows the papers and
recorded results). Difference: every image size is accepted; tables of positions are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.backbones.agent_base import AgentPyramid, ConvEmbed, patch_chain
from zoo.layers.padding import to_pair
from zoo.layers.patch_conv import PatchConv
from zoo.layers.pre_norm_block import PreNormBlock
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_positions import TokenPositions
from zoo.mixers.agent import AgentAttention
from zoo.mixers.spatial_reduction import SpatialReductionAttention
from zoo.registry import register_model, variant


class AgentPVT(AgentPyramid):
    """Agent-PVT.

    Args:
        img_size: image size that positions and position biases are made for, a number or (height, width).
        patch_size: stride of the stem; each later stage halves the map.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dims: width of each stage.
        num_heads: heads of each stage.
        mlp_ratios: hidden channels of the MLPs over the width.
        qkv_bias: bias of the projections to queries, keys and values.
        qk_scale: factor of the logits of stages "B", ``head_dim ** -0.5`` by default; agents do not heed it.
        norm_eps: epsilon of the blocks' norms; those of patches and reductions have 1e-5.
        depths: blocks of each stage.
        attn_type: for each stage "A", agent attention, or "B", PVT's own.
        sr_ratios: reduction of the keys' map in stages "B".
        agent_sr_ratios: reduction of the keys' map in stages "A".
        agent_num: agents in stages "A".
        drop_path_rate: stochastic depth of the last block, growing linearly.
        drop_remainder: leave out rows and columns that make no whole patch rather than pad with zeros.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 4.3 and table 7 of the paper.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        norm_eps: float = 1e-6,
        depths: Sequence[int] = (2, 2, 2, 2),
        attn_type: str = "AAAA",
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        agent_sr_ratios: Sequence[int] = (1, 1, 1, 1),
        agent_num: Sequence[int] = (9, 16, 49, 49),
        drop_path_rate: float = 0.0,
        drop_remainder: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        n = len(embed_dims)
        depths = per_stage("depths", depths, n)
        num_heads, mlp_ratios = per_stage("num_heads", num_heads, n), per_stage("mlp_ratios", mlp_ratios, n)
        sr_ratios, agent_num = per_stage("sr_ratios", sr_ratios, n), per_stage("agent_num", agent_num, n)
        agent_sr_ratios = per_stage("agent_sr_ratios", agent_sr_ratios, n)
        if len(attn_type) != n or set(attn_type) - set("AB"):
            raise ValueError(f"attn_type={attn_type!r}: accepted are {n} letters A (agents) or B (PVT's attention)")
        self._describe(
            embed_dims,
            [patch_size * 2**i for i in range(n)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        patch_sizes = [patch_size] + [2] * (n - 1)
        self.grids = patch_chain(to_pair(img_size, "img_size"), patch_sizes, drop_remainder)

        def mixer(i: int) -> nn.Module:
            dim, heads = embed_dims[i], num_heads[i]
            if attn_type[i] == "B":
                return SpatialReductionAttention(dim, heads, sr_ratios[i], qkv_bias, qk_scale)
            return AgentAttention(
                dim,
                heads,
                agent_num[i],
                self.grids[i],
                qkv_bias,
                sr_ratio=agent_sr_ratios[i],
                separate_projections=True,
            )

        widths = [in_chans, *embed_dims]
        self.embeds = nn.ModuleList(
            ConvEmbed(
                PatchConv(widths[i], widths[i + 1], patch_sizes[i], drop_remainder),
                nn.LayerNorm(widths[i + 1]),
                TokenPositions(self.grids[i], widths[i + 1]),
            )
            for i in range(n)
        )
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                PreNormBlock(embed_dims[i], mixer(i), mlp_ratios[i], rates[i][j], norm_eps) for j in range(depths[i])
            )
            for i in range(n)
        )
        self._finish(depths, head_norm_eps=None)


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentPVT)
def agent_pvt_tiny() -> dict[str, Any]:
    """Agent-PVT-T, 11.6 M parameters."""
    return dict(depths=(2, 2, 2, 2))


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentPVT)
def agent_pvt_small() -> dict[str, Any]:
    """Agent-PVT-S, 20.6 M parameters."""
    return dict(depths=(3, 4, 6, 3))


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentPVT)
def agent_pvt_medium() -> dict[str, Any]:
    """Agent-PVT-M, 35.9 M parameters."""
    return dict(depths=(3, 4, 18, 3))


@register_model(task="classification", family="agent", input_size=256)
@variant(AgentPVT)
def agent_pvt_medium_256() -> dict[str, Any]:
    """Agent-PVT-M for images of 256 x 256, 36.1 M parameters."""
    return dict(depths=(3, 4, 18, 3), img_size=256)


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentPVT)
def agent_pvt_large() -> dict[str, Any]:
    """Agent-PVT-L, 48.7 M parameters."""
    return dict(depths=(3, 8, 27, 3))
