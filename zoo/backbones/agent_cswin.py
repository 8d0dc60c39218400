"""Agent-CSWin: the CSWin Transformer with agent attention in its first stages.

Agent Attention: On the Integration of Softmax and Linear Attention (ECCV 2024, arXiv 2312.08874); CSWin (CVPR 2022,
arXiv 2107.00652). Authors' code: github.com/LeapLabTHU/Agent-Attention (no licence file; this follows the papers and
recorded results). Difference: every image size is accepted; tables of positions are interpolated, maps padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.backbones.hybrid_cswin import HybridCSWin
from zoo.layers.stages import per_stage
from zoo.mixers.cross_shaped import CrossShapedAttention
from zoo.registry import register_model, variant


class AgentCSWin(HybridCSWin):
    """Agent-CSWin.

    Args:
        depth: blocks of each stage.
        agent_num: agents of each stage.
        attn_type: a letter a stage, A (agents), B (softmax) or M; see :func:`~zoo.backbones.hybrid_base.block_kinds`.
        shared: every other argument of :class:`~zoo.backbones.hybrid_cswin.HybridCSWin`; position biases are made for
            ``img_size``.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 4.3 and table 9 of the paper.
    """

    def __init__(
        self,
        depth: Sequence[int] = (2, 4, 18, 1),
        agent_num: Sequence[int] = (9, 16, 49, 49),
        attn_type: str = "AABB",
        **shared: Any,
    ):
        # set first: linear_mixer, which the base's constructor calls, reads it
        self.agent_num = per_stage("agent_num", agent_num, len(depth))
        super().__init__(depth=depth, attn_type=attn_type, **shared)

    def linear_mixer(
        self, stage: int, dim: int, num_heads: int, split_size: int, one_branch: bool | None, qkv_bias: bool
    ) -> nn.Module:
        return CrossShapedAttention(
            dim,
            num_heads,
            split_size=split_size,
            num_agents=self.agent_num[stage],
            input_size=self.grids[stage],
            one_branch=one_branch,
            qkv_bias=qkv_bias,
        )


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentCSWin)
def agent_cswin_tiny() -> dict[str, Any]:
    """Agent-CSWin-T, 20.5 M parameters."""
    return dict(depth=(2, 4, 18, 1))


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentCSWin)
def agent_cswin_small() -> dict[str, Any]:
    """Agent-CSWin-S, 32.8 M parameters."""
    return dict(depth=(3, 6, 29, 2))


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentCSWin)
def agent_cswin_base() -> dict[str, Any]:
    """Agent-CSWin-B, 73.2 M parameters."""
    return dict(embed_dim=96, depth=(3, 6, 29, 2), num_heads=(4, 8, 16, 32))


@register_model(task="classification", family="agent", input_size=384)
@variant(AgentCSWin)
def agent_cswin_base_384() -> dict[str, Any]:
    """Agent-CSWin-B for images of 384 x 384, 73.3 M parameters."""
    return dict(
        img_size=384,
        embed_dim=96,
        depth=(3, 6, 29, 2),
        num_heads=(4, 8, 16, 32),
        split_size=(1, 2, 12, 12),
        la_split_size=(96, 48, 24, 12),
    )
