"""Agent attention inside windows, as in Agent-Swin (arXiv 2312.08874, section 4.3)."""

from __future__ import annotations

from zoo.mixers.agent import AgentAttention
from zoo.mixers.unmasked_windows import UnmaskedWindows
from zoo.registry import register_mixer


@register_mixer(name="agent_window")
class AgentWindowAttention(UnmaskedWindows, AgentAttention):
    """Agent attention inside windows that tile the map, which may be shifted against it.

    See :class:`~zoo.mixers.unmasked_windows.UnmaskedWindows`.

    Args:
        dim: channels C.
        num_heads: attention heads.
        window_size: tokens along each side of a window.
        shift_size: how far windows are shifted along both axes.
        num_agents: agents of a window, a square number.
        qkv_bias: bias of the projections to queries, keys and values.
        whole_map: one window, whatever the size of the map; ``window_size`` then only sizes the position biases.
        pool_side: see :class:`~zoo.mixers.agent.AgentCore`.

    Raises:
        ValueError: a window below 1, or a shift outside 0 to less than the window.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        window_size: int = 7,
        shift_size: int = 0,
        num_agents: int = 9,
        qkv_bias: bool = True,
        whole_map: bool = False,
        pool_side: int | None = None,
    ):
        self.check_windows(window_size, shift_size)
        size = (window_size, window_size)
        AgentAttention.__init__(self, dim, num_heads, num_agents, size, qkv_bias, pool_side=pool_side)
        self.window_size, self.shift_size, self.whole_map = window_size, shift_size, whole_map
