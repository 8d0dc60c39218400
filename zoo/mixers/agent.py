"""Agent attention: pooled queries collect from all keys, and every query reads from them.

Agent Attention: On the Integration of Softmax and Linear Attention (ECCV 2024, arXiv 2312.08874, eq. 5-8).
Authors' code: github.com/LeapLabTHU/Agent-Attention (no licence file; this follows the paper and recorded results).

:class:`AgentCore` is what the four networks of the paper share: agents, position biases, the operator and the
depth-wise branch. :class:`AgentAttention` adds the projections and is the mixer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.padding import to_pair
from zoo.layers.spatial_reduction import SpatialReduction
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.mixers.sampling import Drawing, Heats, place
from zoo.registry import register_mixer
from zoo_kernels.agent_attention import agent_attention

#: side of the tables that give a bias to each pair of agent and place; interpolated to the map
TABLE = 7


def _resize(planes: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation of ``[h, n, a, b]`` to ``[h, n, height, width]``; the same size is left as it is."""
    if planes.shape[2:] == (height, width):
        return planes
    return F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)


class AgentBias(nn.Module):
    """Position biases of both softmaxes, each the sum of a coarse table and of one table along each axis.

    Args:
        num_heads: heads h.
        num_agents: agents n.
        size: map of the queries (H, W) that the axis tables are made for; other sizes interpolate them.
        kv_size: map of the keys, where it differs.
        prefix: a bias for prefix tokens (one for all of them).
        pool_side: how many agents there are along each side, where it is not sqrt(n); the tables are interpolated
            (bilinear) from their square of agents to this one.
    """

    def __init__(
        self,
        num_heads: int,
        num_agents: int,
        size: tuple[int, int],
        kv_size: tuple[int, int] | None = None,
        prefix: bool = False,
        pool_side: int | None = None,
    ):
        super().__init__()
        h, n = num_heads, num_agents
        self.side = math.isqrt(n)
        self.pool_side = pool_side or self.side
        kv_size = kv_size or size
        self.an_bias = nn.Parameter(torch.empty(h, n, TABLE, TABLE))  # agent <- place, coarse
        self.na_bias = nn.Parameter(torch.empty(h, n, TABLE, TABLE))  # place <- agent, coarse
        self.ah_bias = nn.Parameter(torch.empty(1, h, n, kv_size[0], 1))
        self.aw_bias = nn.Parameter(torch.empty(1, h, n, 1, kv_size[1]))
        self.ha_bias = nn.Parameter(torch.empty(1, h, size[0], 1, n))
        self.wa_bias = nn.Parameter(torch.empty(1, h, 1, size[1], n))
        self.ac_bias = nn.Parameter(torch.empty(1, h, n, 1)) if prefix else None
        self.ca_bias = nn.Parameter(torch.empty(1, h, 1, n)) if prefix else None
        self.no_decay = tuple(name for name, _ in self.named_parameters())
        for p in self.parameters():
            nn.init.trunc_normal_(p, std=0.02)

    def _pooled(self, table: Tensor) -> Tensor:
        """``[h, n, a, b]``, a table of n agents, for the m agents that there are: ``[h, m, a, b]``."""
        if self.pool_side == self.side:
            return table
        places = table.flatten(2).transpose(1, 2).unflatten(2, (self.side, self.side))  # [h, a*b, side, side]
        pooled = _resize(places, self.pool_side, self.pool_side).flatten(2)  # [h, a*b, m]
        return pooled.transpose(1, 2).unflatten(2, table.shape[2:])

    def forward(self, size: tuple[int, int], kv_size: tuple[int, int], prefix: int = 0) -> tuple[Tensor, Tensor]:
        """Biases for a map of queries and of keys, each behind ``prefix`` tokens.

        Returns:
            ``[1, h, m, prefix + Hk*Wk]`` for agents over keys and ``[1, h, prefix + H*W, m]`` for queries over agents,
            m agents.
        """
        H, W = size
        Hk, Wk = kv_size
        # interpolating over places and over agents commutes; the tables are smallest before the places
        many = self._pooled
        agent = _resize(many(self.an_bias), Hk, Wk)  # [h, m, Hk, Wk]
        agent = agent + _resize(many(self.ah_bias[0]), Hk, 1) + _resize(many(self.aw_bias[0]), 1, Wk)
        rows = _resize(many(self.ha_bias[0].permute(0, 3, 1, 2)), H, 1)  # [h, m, H, 1]
        columns = _resize(many(self.wa_bias[0].permute(0, 3, 1, 2)), 1, W)  # [h, m, 1, W]
        query = _resize(many(self.na_bias), H, W) + rows + columns
        agent, query = agent.flatten(2)[None], query.flatten(2).transpose(1, 2)[None]  # [1, h, m, Mk], [1, h, N, m]
        if prefix and self.ac_bias is not None and self.ca_bias is not None:
            token = many(self.ac_bias[0][..., None])[None, ..., 0]  # [1, h, m, 1]
            agent = torch.cat([token.expand(-1, -1, -1, prefix), agent], dim=3)
            token = many(self.ca_bias[0].transpose(1, 2)[..., None])[None, ..., 0]  # [1, h, m, 1]
            query = torch.cat([token.transpose(2, 3).expand(-1, -1, prefix, -1), query], dim=2)
        return agent, query


class AgentCore(nn.Module):
    """Agent attention of projected queries, keys and values, with the depth-wise branch of the values.

    Args:
        dim: channels C.
        num_heads: attention heads.
        num_agents: a square number n; the queries are pooled to ``sqrt(n)`` agents a side.
        size: map (H, W) that the position biases are made for; other sizes interpolate them.
        kv_size: map of the keys and values, where it differs.
        prefix_bias: a learned bias for prefix tokens.
        pool_side: pool the queries to so many agents a side; the position biases stay those of ``num_agents`` and are
            interpolated, as the authors do for large images. None for ``sqrt(n)``.

    Raises:
        ValueError: ``num_agents`` is no square number, ``pool_side`` below 1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_agents: int,
        size: tuple[int, int],
        kv_size: tuple[int, int] | None = None,
        prefix_bias: bool = False,
        pool_side: int | None = None,
    ):
        super().__init__()
        side = math.isqrt(max(0, num_agents))
        if num_agents < 1 or side**2 != num_agents:
            raise ValueError(f"num_agents={num_agents}: accepted are square numbers (1, 4, 9, 16, ...)")
        if pool_side is not None and pool_side < 1:
            raise ValueError(f"pool_side={pool_side}: accepted are numbers from 1, or None")
        self.side = pool_side or side
        self.num_heads = num_heads
        self.num_agents = self.side**2
        self.position = AgentBias(num_heads, num_agents, size, kv_size, prefix_bias, pool_side)
        self.dwc = DepthwiseConv(dim, 3)

    def agents(self, q: Tensor) -> Tensor:
        """Agents [B, heads, n, d] pooled from the map of queries [B, H, W, C]."""
        pooled = F.adaptive_avg_pool2d(q.permute(0, 3, 1, 2), self.side)  # [B, C, side, side]
        return pooled.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)

    def heads(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, heads, N, d]"""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        size: tuple[int, int],
        kv_size: tuple[int, int] | None = None,
        prefix: int = 0,
    ) -> Tensor:
        """Attend.

        Args:
            q: ``[B, P + H*W, C]``: P prefix tokens, then the map.
            k: ``[B, P + Hk*Wk, C]``.
            v: ``[B, P + Hk*Wk, C]``; its map is brought to the size of q's (bilinear) for the depth-wise branch.
            size: (H, W).
            kv_size: (Hk, Wk) where it differs.
            prefix: P; prefix tokens attend and are attended, but are neither pooled nor convolved.

        Returns:
            ``[B, P + H*W, C]``, before the output projection.
        """
        kv_size = kv_size or size
        agent_bias, query_bias = self.position(size, kv_size, prefix)
        out = agent_attention(
            self.heads(q),
            self.heads(k),
            self.heads(v),
            self.agents(q[:, prefix:].unflatten(1, size)),
            agent_bias=agent_bias,
            query_bias=query_bias,
        )
        out = out.transpose(1, 2).flatten(2)  # [B, P + H*W, C]
        v_map = v[:, prefix:].unflatten(1, kv_size)  # [B, Hk, Wk, C]
        if kv_size != size:
            v_map = F.interpolate(v_map.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
            v_map = v_map.permute(0, 2, 3, 1)
        local = self.dwc(v_map).flatten(1, 2)  # [B, H*W, C]
        if prefix:
            return torch.cat([out[:, :prefix], out[:, prefix:] + local], dim=1)
        return out + local

    def attention_map(self, q: Tensor, k: Tensor) -> Tensor:
        """The product of both softmaxes, ``[B, heads, H*W, H*W]``, from maps ``[B, H, W, C]``."""
        read, collect = self.both_maps(q, k)
        return read @ collect

    def both_maps(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries over agents ``[B, heads, H*W, n]`` and agents over keys ``[B, heads, n, H*W]``."""
        size = (q.shape[1], q.shape[2])
        agent_bias, query_bias = self.position(size, size)
        qh, kh, agents = self.heads(q.flatten(1, 2)), self.heads(k.flatten(1, 2)), self.agents(q)
        scale = qh.shape[-1] ** -0.5
        collect = (agents @ kh.transpose(-1, -2) * scale + agent_bias).softmax(-1)  # [B, h, n, M]
        return (qh @ agents.transpose(-1, -2) * scale + query_bias).softmax(-1), collect

    def flops(self, queries: int, keys: int) -> int:
        """Multiply-accumulates of both attentions and the convolution for so many positions."""
        dim = self.dwc.out_channels
        return 2 * self.num_agents * dim * (queries + keys) + self.dwc.flops(queries)


@register_mixer(name="agent")
class AgentAttention(Mixer):
    """Agent attention as a token mixer: cost linear in the number of tokens.

    Args:
        dim: channels C.
        num_heads: attention heads.
        num_agents: agents, a square number.
        input_size: map (H, W) that the position biases are made for; they are interpolated to other maps.
        qkv_bias: bias of the projections to queries, keys and values.
        takes_prefix: define prefix tokens (a class token): they are attended and attend like positions, with a learned
            bias of their own, but are not pooled to agents and not convolved.
        sr_ratio: keys and values come from the map reduced by a convolution of this size and stride (a map that it
            does not divide loses its last rows and columns), as in PVT.
        separate_projections: queries apart from keys and values, as in PVT; always so with ``sr_ratio`` above 1.
        pool_side: see :class:`AgentCore`.

    Raises:
        ValueError: ``num_agents`` is no square number, ``sr_ratio`` or ``pool_side`` below 1.

    Source: eq. 5 (attention), eq. 7-8 (position biases), fig. 3 (depth-wise branch).
    """

    growth = "linear"

    qkv: nn.Linear | None
    q: nn.Linear
    kv: nn.Linear

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        num_agents: int = 49,
        input_size: int | tuple[int, int] = (14, 14),
        qkv_bias: bool = True,
        takes_prefix: bool = False,
        sr_ratio: int = 1,
        separate_projections: bool = False,
        pool_side: int | None = None,
    ):
        super().__init__(dim, num_heads)
        if sr_ratio < 1:
            raise ValueError(f"sr_ratio={sr_ratio}: accepted are numbers from 1")
        size = to_pair(input_size, "input_size")
        kv_size = (max(1, size[0] // sr_ratio), max(1, size[1] // sr_ratio))
        self.sr_ratio = sr_ratio
        self.takes_prefix = takes_prefix
        if sr_ratio > 1 or separate_projections:
            self.qkv = None
            self.q = TokenLinear(dim, dim, bias=qkv_bias)
            self.kv = TokenLinear(dim, 2 * dim, bias=qkv_bias)
        else:
            self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.reduction = SpatialReduction(dim, sr_ratio) if sr_ratio > 1 else None
        self.core = AgentCore(dim, num_heads, num_agents, size, kv_size, takes_prefix, pool_side)
        self.proj = TokenLinear(dim, dim)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        self._check(x, prefix)
        size = (x.shape[1], x.shape[2])
        tokens = x.flatten(1, 2)
        if prefix is None:
            return self.forward_tokens(tokens, size).unflatten(1, size)
        P = prefix.shape[1]
        out = self.forward_tokens(torch.cat([prefix, tokens], dim=1), size, P)
        return out[:, P:].unflatten(1, size), out[:, :P]

    def forward_tokens(self, tokens: Tensor, size: tuple[int, int], prefix: int = 0) -> Tensor:
        """The same on ``[B, P + H*W, C]``: ``prefix`` = P tokens, then the map of ``size`` (H, W), row-major."""
        if self.qkv is not None:
            q, k, v = self.qkv(tokens).chunk(3, dim=-1)
            return self.proj(self.core(q, k, v, size, prefix=prefix))
        source, kv_size = tokens, size
        if self.reduction is not None:
            reduced = self.reduction(tokens[:, prefix:].unflatten(1, size))  # [B, Hk, Wk, C]
            kv_size = (reduced.shape[1], reduced.shape[2])
            source = reduced.flatten(1, 2)
            if prefix:
                source = torch.cat([tokens[:, :prefix], source], dim=1)
        k, v = self.kv(source).chunk(2, dim=-1)
        return self.proj(self.core(self.q(tokens), k, v, size, kv_size, prefix))

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: how the two softmaxes together weigh the keys; rows sum to 1.

        Raises:
            TypeError: keys come from a reduced map (``sr_ratio`` above 1).
        """
        q, k, _ = self._full_size(x)
        return self.core.attention_map(q, k)

    def _full_size(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every position, ``[B, H, W, C]`` each."""
        self._check(x)
        if self.reduction is not None:
            raise TypeError(f"sr_ratio={self.sr_ratio}: keys are no positions of the map, there is no attention map")
        if self.qkv is not None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            return q, k, v
        k, v = self.kv(x).chunk(2, dim=-1)
        return self.q(x), k, v

    @torch.no_grad()
    def attention_values(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, d]``; raises TypeError with ``sr_ratio`` above 1."""
        return self.core.heads(self._full_size(x)[2].flatten(1, 2))

    @torch.no_grad()
    def sampling(self, x: Tensor, query: tuple[float, float] = (0.5, 0.5)) -> list[Drawing]:
        """What each agent collects from, and how much the query reads from it; none with ``sr_ratio`` above 1."""
        self._check(x)
        if self.reduction is not None:
            return []
        H, W = x.shape[1:3]
        q, k, _ = self._full_size(x)
        read, collect = self.core.both_maps(q, k)
        row, column = place(query, H, W)
        weights = read[0, :, row * W + column].mean(0)  # [n]
        return [Heats("agents", collect[0].mean(0).unflatten(1, (H, W)).cpu(), weights.cpu())]

    def flops(self, height: int, width: int) -> int:
        N = height * width
        M = N if self.reduction is None else self.reduction.positions(height, width)
        reduction = 0 if self.reduction is None else linear_flops(M, self.reduction.conv)
        projections = linear_flops(N, self.qkv) if self.qkv is not None else linear_flops(N, self.q)
        keys = 0 if self.qkv is not None else linear_flops(M, self.kv)
        return projections + keys + reduction + self.core.flops(N, M) + linear_flops(N, self.proj)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_agents={self.core.num_agents}, sr_ratio={self.sr_ratio}"
