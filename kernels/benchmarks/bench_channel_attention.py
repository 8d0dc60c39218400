"""The channel attention module against timm's."""

from __future__ import annotations

import torch
from harness import Benchmark, Growth, Must, Setup, nbytes, randn

from zoo_kernels.channel_attention import channel_attention


def setup(b: int, n: int, c: int, device: torch.device, dtype: torch.dtype) -> Setup:
    from timm.models.davit import ChannelAttention

    heads = c // 32
    made = {"device": device, "dtype": dtype}
    inputs = {
        "x": randn(b, n, c, **made),
        "qkv_weight": randn(3 * c, c, scale=c**-0.5, **made),
        "qkv_bias": randn(3 * c, **made),
        "proj_weight": randn(c, c, scale=c**-0.5, **made),
        "proj_bias": randn(c, **made),
    }
    # Keys are made small enough that the softmax over sums of N products does not saturate.
    with torch.no_grad():
        for part in ("qkv_weight", "qkv_bias"):
            inputs[part][c : 2 * c] *= n**-0.5
    modules: dict[torch.dtype, torch.nn.Module] = {}

    def timm(x: torch.Tensor, **parameters: torch.Tensor) -> torch.Tensor:
        if x.dtype not in modules:
            modules[x.dtype] = ChannelAttention(c, heads, qkv_bias=True).to(x.device, x.dtype)
        names = {k.replace("_", "."): v for k, v in parameters.items()}
        return torch.func.functional_call(modules[x.dtype], names, (x,))

    def ours(**inputs: torch.Tensor) -> torch.Tensor:
        return channel_attention(**inputs, num_heads=heads)

    return Setup(
        inputs,
        ours,
        {"timm": timm},
        grads=tuple(inputs),
        bytes=nbytes(*inputs.values(), inputs["x"]),
        flops=b * (8 * n * c * c + 4 * n * c * 32),
    )


SHAPES = (  # N, C, batch on CPU, batch on GPU, acceptance on CPU
    (3136, 96, 2, 128, 2.5),
    (784, 192, 4, 128, 1.6),
    (196, 384, 8, 128, 0.97),
    (49, 768, 8, 128, 0.97),
    (16384, 96, 1, 16, 2.0),
    (400, 192, 4, 64, 0.97),
    (16, 96, 4, 64, 0.97),
)


def benchmarks() -> list[Benchmark | Growth]:
    def make(n, c, cpu_batch, gpu_batch):
        return lambda device, dtype: setup(cpu_batch if device.type == "cpu" else gpu_batch, n, c, device, dtype)

    found: list[Benchmark | Growth] = []
    for n, c, cpu_batch, gpu_batch, must in SHAPES:
        gpu = 2.0 if n >= 8 * c else 0.97
        found.append(
            Benchmark(
                "channel_attention",
                f"N{n} C{c}",
                make(n, c, cpu_batch, gpu_batch),
                (Must("timm", must), Must("timm", 0.97, "training")),
                (Must("timm", gpu), Must("timm", 2.0 if gpu > 1 else 0.97, "training")),
            )
        )

    def grow(device: torch.device, dtype: torch.dtype, factor: int) -> Setup:
        return setup(1 if device.type == "cpu" else 32, 3136 * factor, 96, device, dtype)

    return [*found, Growth("channel_attention", "C96", grow, 3136)]
