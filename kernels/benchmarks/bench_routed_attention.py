"""Routed attention against the formulation of BiFormer's authors, and a mask over all keys."""

from __future__ import annotations

import torch
from harness import Benchmark, Growth, Must, Setup, nbytes, randn
from torch.nn import functional as F

from zoo_kernels.routed_attention import routed_attention

HEAD_DIM = 32


def authors(qkv: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Section 3.2 of the BiFormer paper as its authors run it: expand, gather elementwise, permute, multiply.

    qkv [B, R, N, 3, h, d], indices [B, R, topk] -> [B, R, N, h, d].
    """
    B, R, N, _, h, d = qkv.shape
    topk, C = indices.shape[2], h * d
    q, kv = qkv[:, :, :, 0], qkv[:, :, :, 1:].flatten(3)  # kv [B, R, N, 2C]
    wanted = indices.view(B, R, topk, 1, 1).expand(-1, -1, -1, N, 2 * C)
    gathered = torch.gather(kv.view(B, 1, R, N, 2 * C).expand(-1, R, -1, -1, -1), 2, wanted)
    k, v = gathered.split([C, C], dim=-1)
    k = k.reshape(B * R, topk * N, h, d).permute(0, 2, 3, 1)  # [B*R, h, d, topk*N]
    v = v.reshape(B * R, topk * N, h, d).permute(0, 2, 1, 3)
    q = q.reshape(B * R, N, h, d).permute(0, 2, 1, 3)
    attention = ((q * d**-0.5) @ k).softmax(-1)
    return (attention @ v).permute(0, 2, 1, 3).reshape(B, R, N, h, d)


def masked(qkv: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """SDPA over all keys with a boolean mask of the routed regions."""
    B, R, N, _, h, d = qkv.shape
    allowed = torch.zeros(B, R, R, dtype=torch.bool, device=qkv.device).scatter_(2, indices, True)
    mask = allowed[:, None, :, None, :, None].expand(B, 1, R, N, R, N).reshape(B, 1, R * N, R * N)
    q, k, v = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4)  # each [B, h, R*N, d]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).reshape(B, R, N, h, d)


def ours(qkv: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return routed_attention(*qkv.unbind(3), indices)


def setup(
    b: int, regions: int, tokens: int, channels: int, topk: int, device: torch.device, dtype: torch.dtype
) -> Setup:
    heads = channels // HEAD_DIM
    qkv = randn(b, regions, tokens, 3, heads, HEAD_DIM, device=device, dtype=dtype)
    order = randn(b, regions, regions, device=torch.device("cpu"), dtype=torch.float32)
    peers = {"authors": authors}
    if regions * tokens <= 1024:
        peers["masked"] = masked
    return Setup(
        {"qkv": qkv, "indices": order.topk(topk, -1).indices.to(device)},
        ours,
        peers,
        grads=("qkv",),
        bytes=nbytes(qkv) * 4 // 3,
        flops=4 * b * regions * tokens * topk * tokens * channels,
    )


SHAPES = (  # name, regions, tokens a region, C, topk, batch on CPU and GPU, acceptance on CPU and GPU
    ("stage1", 49, 64, 64, 1, 2, 128, 1.6, 1.6),
    ("stage2", 49, 16, 128, 4, 2, 128, 3.0, 4.0),
    ("stage3", 49, 4, 256, 16, 2, 128, 5.0, 6.0),
    ("segmentation", 64, 64, 128, 4, 2, 16, 3.5, 3.5),
)


def benchmarks() -> list[Benchmark | Growth]:
    def make(regions, tokens, channels, topk, cpu_batch, gpu_batch):
        return lambda device, dtype: setup(
            cpu_batch if device.type == "cpu" else gpu_batch, regions, tokens, channels, topk, device, dtype
        )

    found: list[Benchmark | Growth] = [
        Benchmark(
            "routed_attention",
            name,
            make(regions, tokens, channels, topk, cpu_batch, gpu_batch),
            (Must("authors", cpu), Must("authors", 2.0, "training")),
            (Must("authors", gpu), Must("copy", 0.4), Must("authors", 2.0, "training")),
        )
        for name, regions, tokens, channels, topk, cpu_batch, gpu_batch, cpu, gpu in SHAPES
    ]

    def grow(device: torch.device, dtype: torch.dtype, factor: int) -> Setup:
        """Regions of 16 tokens, 4 of them routed, whatever the map's size."""
        return setup(2 if device.type == "cpu" else 64, 49 * factor, 16, 128, 4, device, dtype)

    return [*found, Growth("routed_attention", "regions of 16 tokens", grow, 49 * 16)]
