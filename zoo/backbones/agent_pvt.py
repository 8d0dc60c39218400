"""Agent-PVT: the Pyramid Vision Transformer with agent attention.

Agent Attention: On the Integration of Softmax and Linear Attention (ECCV 2024, arXiv 2312.08874); PVT (ICCV 2021,
arXiv 2102.12122). Authors' code: github.com/LeapLabTHU/Agent-Attention (no licence file; this follows the papers and
recorded results). Difference: every image size is accepted; tables of positions are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.backbones.hybrid_pvt import HybridPVT
from zoo.layers.stages import per_stage
from zoo.mixers.agent import AgentAttention
from zoo.registry import register_model, variant


class AgentPVT(HybridPVT):
    """Agent-PVT.

    Args:
        embed_dims: width of each stage.
        attn_type: for each stage "A", agent attention, or "B", PVT's own.
        agent_sr_ratios: reduction of the keys' map in stages "A".
        agent_num: agents in stages "A".
        pool_sides: for each stage how many agents are pooled along each side of the map; the position biases stay those
            of ``agent_num`` and are interpolated. None for the square roots of ``agent_num``.
        shared: every other argument of :class:`~zoo.backbones.hybrid_pvt.HybridPVT`; position biases, too, are made for
            ``img_size``.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 4.3 and table 7 of the paper.
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        attn_type: str = "AAAA",
        agent_sr_ratios: Sequence[int] = (1, 1, 1, 1),
        agent_num: Sequence[int] = (9, 16, 49, 49),
        pool_sides: Sequence[int] | None = None,
        **shared: Any,
    ):
        # set first: linear_mixer, which the base's constructor calls, reads them
        self.pool_sides = per_stage("pool_sides", pool_sides, len(embed_dims))
        self.agent_num = per_stage("agent_num", agent_num, len(embed_dims))
        self.agent_sr_ratios = per_stage("agent_sr_ratios", agent_sr_ratios, len(embed_dims))
        super().__init__(embed_dims=embed_dims, attn_type=attn_type, **shared)

    def linear_mixer(self, stage: int, dim: int, num_heads: int, qkv_bias: bool) -> nn.Module:
        return AgentAttention(
            dim,
            num_heads,
            self.agent_num[stage],
            self.grids[stage],
            qkv_bias,
            sr_ratio=self.agent_sr_ratios[stage],
            separate_projections=True,
            pool_side=self.pool_sides[stage],
        )


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
