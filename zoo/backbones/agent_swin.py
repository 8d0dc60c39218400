"""Agent-Swin: the Swin Transformer with agent attention, whose windows are as large as the map.

Agent Attention: On the Integration of Softmax and Linear Attention (ECCV 2024, arXiv 2312.08874); Swin (ICCV 2021,
arXiv 2103.14030). Authors' code: github.com/LeapLabTHU/Agent-Attention (no licence file; this follows the papers and
recorded results). Difference: every image size is accepted; tables of positions are interpolated, maps padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.backbones.hybrid_swin import HybridSwin
from zoo.layers.stages import per_stage
from zoo.mixers.agent_window import AgentWindowAttention
from zoo.registry import register_model, variant


class AgentSwin(HybridSwin):
    """Agent-Swin.

    Args:
        depths: blocks of each stage.
        agent_num: agents of each stage.
        pool_sides: for each stage how many agents are pooled along each side of the map; the position biases stay those
            of ``agent_num`` and are interpolated. None for the square roots of ``agent_num``.
        attn_type: a letter a stage, A (agents), B (softmax) or M; see :func:`~zoo.backbones.hybrid_base.block_kinds`.
        shared: every other argument of :class:`~zoo.backbones.hybrid_swin.HybridSwin`; position biases, too, are made
            for ``img_size``.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 4.3 and table 8 of the paper. Shifted agent windows mix both sides of the map's edge, as the
    authors' do.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 6, 2),
        agent_num: Sequence[int] = (9, 16, 49, 49),
        attn_type: str = "AAAB",
        pool_sides: Sequence[int] | None = None,
        **shared: Any,
    ):
        # set first: linear_mixer, which the base's constructor calls, reads them
        self.pool_sides = per_stage("pool_sides", pool_sides, len(depths))
        self.agent_num = per_stage("agent_num", agent_num, len(depths))
        super().__init__(depths=depths, attn_type=attn_type, **shared)

    def linear_mixer(
        self, stage: int, dim: int, num_heads: int, window: int, shift: int, qkv_bias: bool, whole_map: bool
    ) -> nn.Module:
        agents, side = self.agent_num[stage], self.pool_sides[stage]
        return AgentWindowAttention(dim, num_heads, window, shift, agents, qkv_bias, whole_map, side)


@register_model(task="classification", family="agent", input_size=32)
@variant(AgentSwin)
def agent_swin_nano() -> dict[str, Any]:
    """For small images (32 x 32): two stages of agents and one of softmax windows, 0.9 M parameters."""
    return dict(
        img_size=32,
        embed_dim=48,
        depths=(1, 2, 1),
        num_heads=(2, 4, 8),
        window_size=8,
        agent_num=(9, 9, 4),
        attn_type="AAB",
    )


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentSwin)
def agent_swin_tiny() -> dict[str, Any]:
    """Agent-Swin-T, 28.9 M parameters."""
    return dict(depths=(2, 2, 6, 2), attn_type="AAAB")


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentSwin)
def agent_swin_small() -> dict[str, Any]:
    """Agent-Swin-S, 49.7 M parameters."""
    return dict(depths=(2, 2, 18, 2), attn_type="AABB")


@register_model(task="classification", family="agent", input_size=288)
@variant(AgentSwin)
def agent_swin_small_288() -> dict[str, Any]:
    """Agent-Swin-S for images of 288 x 288, 49.7 M parameters."""
    return dict(depths=(2, 2, 18, 2), attn_type="AABB", img_size=288, window_size=72)


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentSwin)
def agent_swin_base() -> dict[str, Any]:
    """Agent-Swin-B, 88.1 M parameters."""
    return dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), attn_type="AAMB2")


@register_model(task="classification", family="agent", input_size=384)
@variant(AgentSwin)
def agent_swin_base_384() -> dict[str, Any]:
    """Agent-Swin-B for images of 384 x 384, 88.3 M parameters."""
    return dict(
        embed_dim=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        attn_type="AAMB2",
        img_size=384,
        window_size=96,
    )
