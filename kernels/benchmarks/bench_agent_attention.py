"""Agent attention against the authors' formulation and two calls of SDPA."""

from __future__ import annotations

import torch
from harness import Benchmark, Growth, Must, Setup, nbytes, randn
from torch import Tensor
from torch.nn import functional as F

from zoo_kernels.agent_attention import agent_attention

HEAD_DIM = 32


def split(qkv: Tensor) -> tuple[Tensor, ...]:
    """q, k, v [B, h, N, d], views of packed [B, N, 3, h, d]."""
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def authors(qkv: Tensor, agent: Tensor, agent_bias: Tensor, query_bias: Tensor) -> Tensor:
    """Equations 5 and 7 of the paper as its authors run them: two products and a softmax each."""
    q, k, v = split(qkv)
    scale = q.shape[-1] ** -0.5
    agent_v = ((agent * scale) @ k.transpose(-2, -1) + agent_bias).softmax(-1) @ v
    return ((q * scale) @ agent.transpose(-2, -1) + query_bias).softmax(-1) @ agent_v


def sdpa(qkv: Tensor, agent: Tensor, agent_bias: Tensor, query_bias: Tensor) -> Tensor:
    """Two fused attention calls, each with its bias as the mask."""
    q, k, v = split(qkv)
    agent_v = F.scaled_dot_product_attention(agent, k, v, attn_mask=agent_bias.expand(len(q), -1, -1, -1))
    return F.scaled_dot_product_attention(q, agent, agent_v, attn_mask=query_bias.expand(len(q), -1, -1, -1))


def ours(qkv: Tensor, agent: Tensor, agent_bias: Tensor, query_bias: Tensor) -> Tensor:
    return agent_attention(*split(qkv), agent, agent_bias=agent_bias, query_bias=query_bias)


def setup(b: int, tokens: int, heads: int, agents: int, device: torch.device, dtype: torch.dtype) -> Setup:
    made = {"device": device, "dtype": dtype}
    inputs = {
        "qkv": randn(b, tokens, 3, heads, HEAD_DIM, **made),
        "agent": randn(b, agents, heads, HEAD_DIM, **made).transpose(1, 2),
        "agent_bias": randn(1, heads, agents, tokens, **made),
        # The modules make this bias from maps [h, n, H, W], so that it comes as a transposed view.
        "query_bias": randn(1, heads, agents, tokens, **made).transpose(2, 3),
    }
    return Setup(
        inputs,
        ours,
        {"authors": authors, "sdpa": sdpa},
        grads=tuple(inputs),
        bytes=nbytes(*inputs.values()) + nbytes(inputs["qkv"]) // 3,
        flops=8 * b * heads * tokens * agents * HEAD_DIM,
    )


SHAPES = (  # tokens, heads, agents, batch on CPU and GPU, acceptance on CPU
    (3136, 2, 9, 2, 128, 1.0),
    (784, 4, 16, 2, 128, 1.0),
    (3136, 3, 49, 2, 128, 1.3),
    (196, 12, 49, 2, 128, 1.0),
    (49, 24, 49, 2, 128, 1.0),
    (16384, 4, 49, 1, 16, 1.3),
)


def benchmarks() -> list[Benchmark | Growth]:
    def make(tokens, heads, agents, cpu_batch, gpu_batch):
        return lambda device, dtype: setup(
            cpu_batch if device.type == "cpu" else gpu_batch, tokens, heads, agents, device, dtype
        )

    found: list[Benchmark | Growth] = [
        Benchmark(
            "agent_attention",
            f"N{tokens} h{heads} n{agents}",
            make(tokens, heads, agents, cpu_batch, gpu_batch),
            (Must("authors", must), Must("authors", 0.97, "training")),
            (Must("sdpa", 2.0), Must("copy", 0.45), Must("authors", 2.0, "training")),
        )
        for tokens, heads, agents, cpu_batch, gpu_batch, must in SHAPES
    ]

    def grow(device: torch.device, dtype: torch.dtype, factor: int) -> Setup:
        return setup(1 if device.type == "cpu" else 32, 3136 * factor, 4, 49, device, dtype)

    return [*found, Growth("agent_attention", "49 agents", grow, 3136)]
