"""Linear attentions against the formulations of their authors and against softmax attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness import Benchmark, Growth, Must, Setup, nbytes, randn

from zoo_kernels.linear_attention import inline_attention, linear_attention, mala_attention, taylor_attention


def mlla(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """elu+1 as MLLA computes it: keys and values scaled by N^-1/2 each, the denominator from the mean key."""
    n = k.shape[2]
    q, k = F.elu(q) + 1, F.elu(k) + 1
    z = 1 / (q @ k.mean(2, keepdim=True).transpose(-2, -1) + 1e-6)
    return q @ ((k.transpose(-2, -1) * n**-0.5) @ (v * n**-0.5)) * z


def efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.softmax(q, -1) @ (F.softmax(k, -2).transpose(-2, -1) @ v)


def inline(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """InLine as its equation is written: a scaled state, and a row factor for the mean value."""
    n, scale = k.shape[2], q.shape[-1] ** -0.5
    state = (k.transpose(-2, -1) * (scale / n) ** 0.5) @ (v * (scale / n) ** 0.5)
    rest = 1 - (q * k.mean(2, keepdim=True)).sum(-1, keepdim=True) * scale
    return q @ state + rest * v.mean(2, keepdim=True)


def mala(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """MALA as its equation is written, without rotation."""
    n, scale = k.shape[2], q.shape[-1] ** -0.5
    q, k = F.elu(q) + 1, F.elu(k) + 1
    z = q @ k.mean(2, keepdim=True).transpose(-2, -1) * scale
    state = (k.transpose(-2, -1) * (scale / n) ** 0.5) @ (v * (scale / n) ** 0.5)
    return q @ state * (1 + 1 / (z + 1e-6)) - z * v.mean(2, keepdim=True)


def causal_elu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The quadratic form under a triangular mask."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    w = (q @ k.transpose(-2, -1)).tril()
    return w @ v / (w.sum(-1, keepdim=True) + 1e-6)


def taylor_direct(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    x = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    w = 0.5 * x**2 + x + 1
    return w @ v / w.sum(-1, keepdim=True)


FORMS = {
    "elu+1": (linear_attention, {}, "MLLA", mlla),
    "softmax": (linear_attention, {"feature_map": "softmax"}, "equation", efficient),
    "InLine": (inline_attention, {}, "equation", inline),
    "MALA": (mala_attention, {}, "equation", mala),
    "causal elu+1": (linear_attention, {"causal": True}, "quadratic", causal_elu),
    "TaylorShift": (taylor_attention, {}, "direct", taylor_direct),
}


def setup(form: str, b: int, h: int, n: int, d: int, device: torch.device, dtype: torch.dtype) -> Setup:
    function, options, name, peer = FORMS[form]
    # In memory as the projection leaves them: [B, N, h, d].
    inputs = {x: randn(b, n, h, d, device=device, dtype=dtype, seed=i).transpose(1, 2) for i, x in enumerate("qkv")}

    def ours(**inputs: torch.Tensor) -> torch.Tensor:
        return function(**inputs, **options)

    flops = 4 * b * h * n * d * d
    moved = nbytes(*inputs.values(), inputs["v"])
    return Setup(inputs, ours, {name: peer}, grads=("q", "k", "v"), bytes=moved, flops=flops)


SHAPES = (  # form, heads, N, d, batch on CPU, batch on GPU, acceptance on CPU and GPU
    ("elu+1", 2, 3136, 32, 2, 128, 1.0, 1.2),
    ("elu+1", 2, 16384, 32, 1, 1, 1.0, 2.0),
    ("softmax", 2, 3136, 32, 2, 128, 0.95, 1.2),  # on CPU ours is the same formulation
    ("InLine", 2, 3136, 32, 2, 128, 1.0, 1.2),
    ("MALA", 2, 3136, 32, 2, 128, 1.0, 1.2),
    ("causal elu+1", 2, 3136, 32, 1, 32, 1.0, 1.0),
    ("TaylorShift", 3, 3136, 16, 1, 32, 1.0, 1.0),
)


def benchmarks() -> list[Benchmark | Growth]:
    def make(form, h, n, d, cpu_batch, gpu_batch):
        return lambda device, dtype: setup(
            form, cpu_batch if device.type == "cpu" else gpu_batch, h, n, d, device, dtype
        )

    found: list[Benchmark | Growth] = []
    for form, h, n, d, cpu_batch, gpu_batch, cpu, gpu in SHAPES:
        peer = FORMS[form][2]
        lines = [Must(peer, gpu), Must(peer, gpu, "training")]
        if form == "elu+1":
            lines.append(Must("copy", 0.55))
        found.append(
            Benchmark(
                "linear_attention",
                f"{form} N{n} h{h} d{d}",
                make(form, h, n, d, cpu_batch, gpu_batch),
                (Must(peer, cpu), Must(peer, cpu, "training")),
                tuple(lines),
            )
        )

    def grow(form: str):
        def make_grown(device: torch.device, dtype: torch.dtype, factor: int) -> Setup:
            return setup(form, 1 if device.type == "cpu" else 32, 2, 3136 * factor, 16, device, dtype)

        return make_grown

    return [*found, *(Growth("linear_attention", form, grow(form), 3136) for form in FORMS)]
