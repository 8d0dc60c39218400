"""Small calls that every generic operator test runs."""

from __future__ import annotations

import torch

from zoo_kernels.agent_attention import agent_attention
from zoo_kernels.testing import Case


def cases() -> dict[str, Case]:
    """Few and many agents, biases of every broadcast kind, keys of another number, one token."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    def call(b: int, h: int, n: int, m: int, agents: int, d: int, **kwargs: object) -> Case:
        args = (randn(b, h, n, d), randn(b, h, m, d), randn(b, h, m, d), randn(b, h, agents, d))
        batched = [k for k, v in kwargs.items() if isinstance(v, torch.Tensor) and v.dim() == 4 and v.shape[0] == b > 1]
        return Case(agent_attention, args, kwargs, batched=(0, 1, 2, 3, *batched))

    return {
        "plain": call(2, 3, 21, 21, 9, 12),
        "shared-bias": call(2, 2, 37, 37, 5, 16, agent_bias=randn(1, 2, 5, 37), query_bias=randn(2, 37, 5), scale=0.3),
        "own-bias": call(2, 2, 19, 31, 4, 8, agent_bias=randn(2, 1, 4, 31), query_bias=randn(2, 2, 1, 4)),
        "one-bias": call(1, 2, 70, 35, 33, 16, query_bias=randn(1, 2, 1, 33)),
        "many-agents": call(1, 1, 40, 66, 49, 32, agent_bias=randn(49, 66)),
        "one-token": call(2, 1, 1, 1, 1, 8, agent_bias=randn(1, 1, 1, 1)),
    }
