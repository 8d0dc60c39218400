"""Super tokens against the formulation with unfold and fold (STViT, arXiv:2211.11167, sec. 3.2)."""

from __future__ import annotations

import torch
from harness import Benchmark, Growth, Implementation, Must, Setup, nbytes, randn
from torch.nn import functional as F

from zoo_kernels.super_token import back_project, super_token


def unfold_peer(cell: int) -> Implementation:
    """Association, update and back-projection of a map [B, C, H, W]; neighbours by convolution with unit kernels."""

    def unfold(t: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        b, c, hh, ww = t.shape
        return F.conv2d(t.reshape(b * c, 1, hh, ww), kernels, padding=1).view(b, c, 9, hh * ww)

    def fold(t: torch.Tensor, kernels: torch.Tensor, b: int, hh: int, ww: int) -> torch.Tensor:
        return F.conv_transpose2d(t.reshape(-1, 9, hh, ww), kernels, padding=1).view(b, -1, hh, ww)

    def run(x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        hh, ww = h // cell, w // cell
        kernels = torch.eye(9, dtype=x.dtype, device=x.device).view(9, 1, 3, 3)
        tokens = F.adaptive_avg_pool2d(x, (hh, ww))
        pixels = x.view(b, c, hh, cell, ww, cell).permute(0, 2, 4, 3, 5, 1).reshape(b, hh * ww, cell * cell, c)
        with torch.no_grad():
            near = unfold(tokens, kernels).permute(0, 3, 1, 2)  # [B, cells, C, 9]
            affinity = (pixels @ near * c**-0.5).softmax(-1)  # [B, cells, P, 9]
            total = fold(affinity.sum(2).transpose(1, 2), kernels, b, hh, ww) + 1e-12
        gathered = pixels.transpose(2, 3) @ affinity  # [B, cells, C, 9]
        tokens = fold(gathered.permute(0, 2, 3, 1), kernels, b, hh, ww) / total
        back = unfold(tokens, kernels).permute(0, 3, 1, 2) @ affinity.transpose(2, 3)  # [B, cells, C, P]
        return back.view(b, hh, ww, c, cell, cell).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)

    return run


def setup(batch: int, side: int, channels: int, cell: int, device: torch.device, dtype: torch.dtype) -> Setup:
    """Association and back-projection of square maps; the peer works on channels-first maps, as its authors do."""
    x = randn(batch, channels, side, side, device=device, dtype=dtype)
    peer = unfold_peer(cell)

    def ours(x: torch.Tensor) -> torch.Tensor:
        tokens, affinity = super_token(x, cell=cell)
        return back_project(tokens, affinity, cell=cell, size=(side, side))

    return Setup(
        {"x": x.permute(0, 2, 3, 1).contiguous()},
        ours,
        {"unfold": lambda x: peer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)},
        grads=("x",),
        bytes=2 * nbytes(x) + batch * side * side * 9 * 2 * x.element_size(),
        flops=batch * side * side * channels * 9 * 6,
        # The same numbers laid out channels-first, so that the peer's permute gives it a contiguous map.
        prepare={"unfold": lambda i: {"x": i["x"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)}},
    )


def benchmarks() -> list[Benchmark | Growth]:
    """The first two stages of STViT-S at 224 and at 384 pixels."""
    shapes = {
        "stage 1, 56x56 C64 cell 8": (2, 56, 64, 8),
        "stage 2, 28x28 C128 cell 4": (2, 28, 128, 4),
        "stage 1, 96x96 C64 cell 8": (1, 96, 64, 8),
    }
    must = (Must("unfold", 2.0),)
    return [
        *(
            Benchmark(
                "super_token",
                name,
                lambda device, dtype, s=s: setup(s[0] * (64 if device.type == "cuda" else 1), *s[1:], device, dtype),
                cpu=must,
                gpu=must,
            )
            for name, s in shapes.items()
        ),
        Growth(
            "super_token",
            "C64 cell 8",
            lambda device, dtype, factor: setup(1, 112 * round(factor**0.5), 64, 8, device, dtype),
            tokens=112 * 112,
        ),
    ]
