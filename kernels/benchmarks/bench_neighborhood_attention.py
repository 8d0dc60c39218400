"""Neighborhood attention against a gather of every query's neighbours, and on a GPU against flex_attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import Benchmark, Growth, Must, Setup, nbytes, randn

from zoo_kernels.neighborhood_attention import halo_attention, neighborhood_attention


def starts(length: int, kernel: int, device: torch.device) -> torch.Tensor:
    """First key of each query's window (no dilation)."""
    return (torch.arange(length, device=device) - kernel // 2).clamp(0, length - kernel)


def gather(kernel: int, height: int, width: int, device: torch.device) -> Callable[..., torch.Tensor]:
    """Plain PyTorch: copy the kernel * kernel keys and values of every query, then two small products."""
    offset = torch.arange(kernel, device=device)
    rows, columns = (starts(n, kernel, device)[:, None] + offset for n in (height, width))
    index = (rows[:, None, :, None] * width + columns[None, :, None, :]).view(height * width, -1)  # [N, K]
    rel = [r - torch.arange(n, device=device)[:, None] + kernel - 1 for r, n in ((rows, height), (columns, width))]
    rel_index = (rel[0][:, None, :, None] * (2 * kernel - 1) + rel[1][None, :, None, :]).view(height * width, -1)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        b, _, _, h, d = q.shape
        q_ = (q * d**-0.5).view(b, -1, h, 1, d)
        k_, v_ = (t.flatten(1, 2)[:, index].transpose(2, 3) for t in (k, v))  # [B, N, h, K, d]
        logits = q_ @ k_.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias.flatten(1)[:, rel_index].transpose(0, 1).unsqueeze(-2)
        return (logits.softmax(-1) @ v_).view(q.shape)

    return attend


def flex(kernel: int, height: int, width: int, device: torch.device) -> Callable[..., torch.Tensor]:
    """flex_attention with a block mask of the same windows."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    first_row, first_column = starts(height, kernel, device), starts(width, kernel, device)

    def seen(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        rows, columns = j // width - first_row[i // width], j % width - first_column[i % width]
        return (rows >= 0) & (rows < kernel) & (columns >= 0) & (columns < kernel)

    mask = create_block_mask(seen, None, None, height * width, height * width, device=device)
    compiled = torch.compile(flex_attention)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        flat = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
        return compiled(*flat, block_mask=mask).transpose(1, 2).reshape(q.shape)

    return attend


def setup(
    b: int, side: int, h: int, kernel: int, bias: bool, device: torch.device, dtype: torch.dtype, peers: bool = True
) -> Setup:
    made = {"device": device, "dtype": dtype}
    inputs = {x: randn(b, side, side, h, 32, seed=i, **made) for i, x in enumerate("qkv")}
    if bias:
        inputs["bias"] = randn(h, 2 * kernel - 1, 2 * kernel - 1, **made)

    def ours(**inputs: torch.Tensor) -> torch.Tensor:
        return neighborhood_attention(**inputs, kernel_size=kernel)

    others: dict[str, Callable[..., torch.Tensor]] = {}
    if peers:
        others["gather"] = gather(kernel, side, side, device)
        if device.type == "cuda" and not bias:
            others["flex_attention"] = flex(kernel, side, side, device)
    moved = nbytes(*inputs.values(), inputs["q"])
    flops = 4 * b * h * side**2 * kernel**2 * 32
    return Setup(inputs, ours, others, grads=tuple(inputs), bytes=moved, flops=flops)


def halo_setup(b: int, side: int, h: int, device: torch.device, dtype: torch.dtype) -> Setup:
    made = {"device": device, "dtype": dtype}
    inputs = {x: randn(b, side, side, h, 32, seed=i, **made) for i, x in enumerate("qkv")}
    inputs |= {x: randn(27, 32, seed=i, scale=32**-0.5, **made) for i, x in enumerate(("rel_height", "rel_width"))}

    def position(q: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Relative logits of one axis by padding and reshaping, as HaloNet's code does it; q [X, y, x, d]."""
        rows, y, x, _ = q.shape
        win = (table.shape[0] + 1) // 2
        logits = F.pad((q @ table.t()).reshape(-1, x, table.shape[0]), (0, 1)).flatten(1)
        logits = F.pad(logits, (0, table.shape[0] - x)).view(-1, x + 1, table.shape[0])[:, :x, win - 1 :]
        return logits.view(rows, y, 1, x, win).expand(-1, -1, win, -1, -1)

    def unfolded(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_height: torch.Tensor, rel_width: torch.Tensor
    ) -> torch.Tensor:
        b, n, blocks = q.shape[0], q.shape[1], q.shape[1] // 8
        q_ = q.view(b, blocks, 8, blocks, 8, h, 32).permute(0, 5, 1, 3, 2, 4, 6).reshape(-1, 8, 8, 32)
        k_, v_ = (
            F.pad(t, (0, 0, 0, 0, 3, 3, 3, 3)).unfold(1, 14, 8).unfold(2, 14, 8)  # [B, by, bx, h, d, 14, 14]
            for t in (k, v)
        )
        k_, v_ = (t.permute(0, 3, 1, 2, 5, 6, 4).reshape(-1, 196, 32) for t in (k_, v_))
        across = position(q_, rel_width).permute(0, 1, 3, 2, 4)
        down = position(q_.transpose(1, 2), rel_height).permute(0, 3, 1, 4, 2)
        rel = (across + down).reshape(-1, 64, 196)
        out = ((q_.flatten(1, 2) @ k_.transpose(-2, -1)) * 32**-0.5 + rel).softmax(-1) @ v_
        out = out.view(b, h, blocks, blocks, 8, 8, 32).permute(0, 2, 4, 3, 5, 1, 6)
        return out.reshape(b, n, n, h, 32)

    def ours(**inputs: torch.Tensor) -> torch.Tensor:
        return halo_attention(**inputs, block_size=8, halo_size=3)

    moved = nbytes(*inputs.values(), inputs["q"])
    return Setup(inputs, ours, {"HaloNet": unfolded}, grads=tuple(inputs), bytes=moved)


SHAPES = (  # side, heads, kernel, bias, batch on CPU, batch on GPU, acceptance on CPU
    (56, 2, 7, False, 1, 128, 8.0),
    (28, 4, 7, False, 1, 128, 8.0),
    (14, 8, 7, False, 1, 128, 8.0),
    (56, 2, 7, True, 1, 128, 8.0),
    (56, 2, 13, False, 1, 16, 8.0),
)


def benchmarks() -> list[Benchmark | Growth]:
    def make(side, h, kernel, bias, cpu_batch, gpu_batch):
        return lambda device, dtype: setup(
            cpu_batch if device.type == "cpu" else gpu_batch, side, h, kernel, bias, device, dtype
        )

    found: list[Benchmark | Growth] = []
    for side, h, kernel, bias, cpu_batch, gpu_batch, cpu in SHAPES:
        lines = [Must("copy", 0.3)] if kernel == 7 else []
        if not bias:
            lines += [Must("flex_attention", 3.0), Must("flex_attention", 2.0, "training")]
        found.append(
            Benchmark(
                "neighborhood_attention",
                f"{side}x{side} h{h} k{kernel}{' bias' if bias else ''}",
                make(side, h, kernel, bias, cpu_batch, gpu_batch),
                (Must("gather", cpu),),
                tuple(lines),
            )
        )
    found.append(
        Benchmark(
            "neighborhood_attention",
            "halo 32x32 h4 block8 halo3",
            lambda device, dtype: halo_setup(1 if device.type == "cpu" else 32, 32, 4, device, dtype),
            (Must("HaloNet", 1.0),),
            (),
        )
    )

    def grow(device: torch.device, dtype: torch.dtype, factor: int) -> Setup:
        side = 56 if factor == 1 else 112
        return setup(1 if device.type == "cpu" else 32, side, 2, 7, False, device, dtype, peers=False)

    return [*found, Growth("neighborhood_attention", "k7", grow, 3136)]
