"""Window attention against Swin's formulation and against roll + partition + SDPA + reverse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness import Benchmark, Growth, Must, Setup, nbytes, randn

from zoo_kernels.window_attention import window_attention

WINDOW = 7


def swin_mask(h: int, w: int, shift: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor | None:
    """Swin's additive mask [windows, N, N] of -100, made once as its authors' module does."""
    if not shift:
        return None
    labels = torch.zeros(h, w, device=device)
    bounds = (slice(0, -WINDOW), slice(-WINDOW, -shift), slice(-shift, None))
    for i, rows in enumerate(bounds):
        for j, cols in enumerate(bounds):
            labels[rows, cols] = 3 * i + j
    labels = labels.view(h // WINDOW, WINDOW, w // WINDOW, WINDOW).transpose(1, 2).reshape(-1, WINDOW**2)
    return ((labels[:, None] != labels[:, :, None]).float() * -100).to(dtype)


def partition(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, H, W, 3C] -> [3, B * windows, heads, N, d]."""
    b, h, w, c = x.shape
    x = x.view(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).transpose(2, 3).reshape(-1, WINDOW**2, c)
    return x.view(-1, WINDOW**2, 3, heads, c // 3 // heads).permute(2, 0, 3, 1, 4)


def reverse(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """[B * windows, heads, N, d] -> [B, H, W, C]."""
    x = x.transpose(1, 2).flatten(2)
    x = x.view(-1, h // WINDOW, w // WINDOW, WINDOW, WINDOW, x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], h, w, -1)


def setup(b: int, size: int, c: int, heads: int, shift: int, device: torch.device, dtype: torch.dtype) -> Setup:
    qkv = randn(b, size, size, 3 * c, device=device, dtype=dtype)
    bias = randn(heads, WINDOW**2, WINDOW**2, device=device, dtype=dtype)
    padded = -(-size // WINDOW) * WINDOW
    mask = swin_mask(padded, padded, shift, device, torch.float32)
    zeros = torch.zeros(3 * c, device=device, dtype=dtype)

    def around(qkv: torch.Tensor, attend) -> torch.Tensor:
        qkv = F.pad(qkv, (0, 0, 0, padded - size, 0, padded - size))
        qkv = qkv.roll((-shift, -shift), (1, 2)) if shift else qkv
        out = reverse(attend(*partition(qkv, heads)), padded, padded)
        return (out.roll((shift, shift), (1, 2)) if shift else out)[:, :size, :size]

    def swin(qkv: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        def attend(q, k, v):
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
            if mask is not None:
                windows = mask.shape[0]
                logits = logits.view(-1, windows, *logits.shape[1:]) + mask.to(logits.dtype)[None, :, None]
                logits = logits.flatten(0, 1)
            return logits.softmax(-1) @ v

        return around(qkv, attend)

    def sdpa(qkv: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        def attend(q, k, v):
            added = bias[None]
            if mask is not None:
                added = (added + mask.to(bias.dtype)[:, None]).repeat(q.shape[0] // mask.shape[0], 1, 1, 1)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=added)

        return around(qkv, attend)

    def ours(qkv: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return window_attention(
            qkv, num_heads=heads, window=WINDOW, shift=shift, bias=bias, pad_value=zeros if padded != size else None
        )

    windows = b * (padded // WINDOW) ** 2
    return Setup(
        {"qkv": qkv, "bias": bias},
        ours,
        {"Swin": swin, "roll, partition, SDPA": sdpa},
        grads=("qkv", "bias"),
        bytes=nbytes(qkv, bias) + nbytes(qkv) // 3,
        flops=4 * windows * heads * WINDOW**4 * (c // heads),
    )


SHAPES = (  # name, batch on CPU, batch on GPU, side, channels, heads, shift
    ("56 C96", 4, 128, 56, 96, 3, 0),
    ("56 C96 shift", 4, 128, 56, 96, 3, 3),
    ("28 C192 shift", 4, 128, 28, 192, 6, 3),
    ("14 C384 shift", 8, 128, 14, 384, 12, 3),
    ("7 C768", 16, 128, 7, 768, 24, 0),
    ("128 C96 padded shift", 1, 16, 128, 96, 3, 3),
)

CPU = (Must("Swin", 1.3),)
GPU = (
    Must("copy", 0.45),
    Must("roll, partition, SDPA", 2.5),
    Must("roll, partition, SDPA", 2.0, "training"),
    Must("Swin", 2.0, "training"),
)


def benchmarks() -> list[Benchmark | Growth]:
    def make(shape):
        _, cpu_batch, gpu_batch, *rest = shape
        return lambda device, dtype: setup(cpu_batch if device.type == "cpu" else gpu_batch, *rest, device, dtype)

    def grow(device: torch.device, dtype: torch.dtype, factor: int) -> Setup:
        side = 56 * (1 if factor == 1 else 2)
        return setup(1 if device.type == "cpu" else 32, side, 96, 3, 3, device, dtype)

    return [
        *(Benchmark("window_attention", shape[0], make(shape), CPU, GPU) for shape in SHAPES),
        Growth("window_attention", "window 7 C96", grow, 56 * 56),
    ]
