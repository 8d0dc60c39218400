"""Agent-DeiT: a plain vision transformer with agent attention.

Agent Attention: On the Integration of Softmax and Linear Attention (ECCV 2024, arXiv 2312.08874); DeiT (ICML 2021,
arXiv 2012.12877). Authors' code: github.com/LeapLabTHU/Agent-Attention (no licence file; this follows the papers and
recorded results). Difference: every image size is accepted; tables of positions are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.backbones.hybrid_deit import HybridDeiT
from zoo.mixers.agent import AgentAttention
from zoo.mixers.softmax import SoftmaxAttention
from zoo.registry import register_model, variant

#: which entry of ``agent_num`` a pair of blocks takes
AGENT_GROUPS = (0, 1, 2, 2, 2, 3)


class AgentDeiT(HybridDeiT):
    """Agent-DeiT; every block is a stage of stride ``patch_size``.

    Args:
        agent_num: agents of blocks 0-1, 2-3, 4-9 and 10-11.
        agent_layer: number of blocks with agents, the others have softmax attention; 0 or less for all.
        depth: blocks.
        shared: every other argument of :class:`~zoo.backbones.hybrid_deit.HybridDeiT`; position biases, too, are made
            for ``img_size``.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 4.3 and table 6 of the paper.
    """

    def __init__(
        self,
        agent_num: Sequence[int] = (49, 49, 49, 49),
        agent_layer: int = -1,
        depth: int = 12,
        **shared: Any,
    ):
        with_agents = min(depth, agent_layer) if agent_layer > 0 else depth
        if with_agents > 2 * len(AGENT_GROUPS):
            raise ValueError(
                f"depth={depth} with agent_layer={agent_layer}: at most {2 * len(AGENT_GROUPS)} blocks have agents"
            )
        if len(agent_num) != 4:
            raise ValueError(f"agent_num={agent_num!r}: accepted are four numbers")
        # set first: block_mixer, which the base's constructor calls, reads them
        self.agents = [agent_num[AGENT_GROUPS[i // 2]] for i in range(with_agents)]
        super().__init__(depth=depth, **shared)

    def block_mixer(self, block: int, dim: int, num_heads: int, qkv_bias: bool) -> nn.Module:
        if block >= len(self.agents):
            return SoftmaxAttention(dim, num_heads, qkv_bias)
        return AgentAttention(dim, num_heads, self.agents[block], self.grid, qkv_bias, takes_prefix=True)


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentDeiT)
def agent_deit_tiny() -> dict[str, Any]:
    """Agent-DeiT-T, 6.0 M parameters."""
    return dict(embed_dim=192, num_heads=3)


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentDeiT)
def agent_deit_small() -> dict[str, Any]:
    """Agent-DeiT-S, 22.6 M parameters."""
    return dict(embed_dim=384, num_heads=6)


@register_model(task="classification", family="agent", input_size=448)
@variant(AgentDeiT)
def agent_deit_small_448() -> dict[str, Any]:
    """Agent-DeiT-S for images of 448 x 448, 23.1 M parameters."""
    return dict(embed_dim=384, num_heads=6, img_size=448)


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentDeiT)
def agent_deit_base() -> dict[str, Any]:
    """Agent-DeiT-B, agents in the first four blocks, 87.2 M parameters."""
    return dict(embed_dim=768, num_heads=12, agent_num=(81, 81, 81, 81), agent_layer=4)
