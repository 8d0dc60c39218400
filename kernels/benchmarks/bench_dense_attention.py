"""Dense attention: softmax against plain SDPA, the other scores against their equations written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness import Benchmark, Must, Setup, nbytes, randn

from zoo_kernels.dense_attention import dense_attention


def written_out(score: str):
    """The equation with the whole matrix of scores in memory."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if score == "relu":
            weights = logits.relu()
        elif score == "cog":
            weights = logits.abs().softmax(-1) * logits.sign()
        else:
            weights = logits.softmax(-2)
        return weights @ v

    return attend


def setup(score: str, b: int, h: int, n: int, device: torch.device, dtype: torch.dtype) -> Setup:
    inputs = {name: randn(b, h, n, 64, device=device, dtype=dtype, seed=i) for i, name in enumerate("qkv")}

    def ours(**inputs: torch.Tensor) -> torch.Tensor:
        return dense_attention(**inputs, score=score)

    if score == "softmax":
        peers = {"SDPA": lambda q, k, v: F.scaled_dot_product_attention(q, k, v)}
    else:
        peers = {"equation": written_out(score)}
    moved = nbytes(*inputs.values(), inputs["q"])
    return Setup(inputs, ours, peers, grads=("q", "k", "v"), bytes=moved, flops=4 * b * h * n * n * 64)


SHAPES = (("N197", 2, 128, 12, 197), ("N1024", 1, 16, 6, 1024))


def benchmarks() -> list[Benchmark]:
    found = []
    for score in ("softmax", "relu", "cog", "reversed"):
        for name, cpu_batch, gpu_batch, heads, n in SHAPES:

            def make(device, dtype, score=score, sizes=(cpu_batch, gpu_batch), heads=heads, n=n):
                return setup(score, sizes[device.type != "cpu"], heads, n, device, dtype)

            peer = "SDPA" if score == "softmax" else "equation"
            found.append(
                Benchmark(
                    "dense_attention",
                    f"{score} {name}",
                    make,
                    (Must(peer, 0.95),),
                    (Must(peer, 0.95 if score == "softmax" else 2.0),),
                )
            )
    return found
