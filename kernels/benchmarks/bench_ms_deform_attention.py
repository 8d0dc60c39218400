"""Deformable attention against transformers' module and, where installed, deformops."""

from __future__ import annotations

import importlib.util

import torch
from harness import Benchmark, Growth, Implementation, Must, Setup, nbytes, randn

from zoo_kernels.ms_deform_attention import ms_deform_attention

Shapes = tuple[tuple[int, int], ...]

#: An image of 800 x 800 (the CPU sizes) and one of 800 x 1333, at strides 8 to 64.
SQUARE: Shapes = ((100, 100), (50, 50), (25, 25), (13, 13))
WIDE: Shapes = ((100, 167), (50, 84), (25, 42), (13, 21))
HEADS, DIM, POINTS = 8, 32, 4


def transformers_peer(shapes: Shapes, device: torch.device) -> Implementation:
    """transformers' eager module: grid_sample level by level."""
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    module, table = MultiScaleDeformableAttention(), torch.tensor(shapes, device=device)

    def run(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return module(value, table, list(shapes), None, locations, weights, 64)

    return run


def deformops_peer(shapes: Shapes, device: torch.device) -> Implementation | None:
    """deformops' operator, if the package is there."""
    if device.type != "cuda" or importlib.util.find_spec("deformops") is None:
        return None
    from deformops import multi_scale_deformable_attention

    table = torch.tensor(shapes, device=device)
    start = torch.cat([table.new_zeros(1), table.prod(1).cumsum(0)[:-1]])

    def run(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return multi_scale_deformable_attention(value, table, start, locations, weights)

    return run


def inputs(shapes: Shapes, queries: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Samples 2 pixels (standard deviation) around a reference point: each position in an encoder, random otherwise.

    Locations and weights stay in float32 whatever the dtype of the values. Samples keep 0.05 pixels away from the pixel
    centres, where the gradient jumps and rounding decides its side.
    """
    total = sum(h * w for h, w in shapes)
    if queries == total:
        grids = [
            torch.stack(torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij"), -1)
            for h, w in shapes
        ]
        reference = torch.cat([g.flip(-1).reshape(-1, 2) for g in grids])
    else:
        reference = torch.rand(queries, 2, generator=torch.Generator().manual_seed(1))
    size = torch.tensor([(w, h) for h, w in shapes])[:, None]
    offsets = randn(1, queries, HEADS, len(shapes), POINTS, 2, device=torch.device("cpu"), dtype=torch.float32)
    pixels = reference[None, :, None, None, None] * size - 0.5 + 2 * offsets
    pixels = pixels.floor() + pixels.frac().remainder(1).clamp(0.05, 0.95)
    weights = randn(1, queries, HEADS, len(shapes) * POINTS, device=torch.device("cpu"), dtype=torch.float32)
    return {
        "value": randn(1, total, HEADS, DIM, device=device, dtype=dtype),
        "locations": ((pixels + 0.5) / size).to(device),
        "weights": weights.softmax(-1).view(1, queries, HEADS, len(shapes), POINTS).to(device),
    }


def setup(shapes: Shapes, queries: int, device: torch.device, dtype: torch.dtype) -> Setup:
    """One call on these maps."""
    tensors = inputs(shapes, queries, device, dtype)

    def ours(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return ms_deform_attention(value, shapes, locations, weights)

    peers = {"transformers": transformers_peer(shapes, device)}
    other = deformops_peer(shapes, device)
    if other is not None:
        peers["deformops"] = other
    samples = queries * HEADS * len(shapes) * POINTS
    out = queries * HEADS * DIM * tensors["value"].element_size()
    return Setup(
        tensors,
        ours,
        peers,
        grads=("value", "locations", "weights"),
        bytes=nbytes(*tensors.values()) + out,
        flops=samples * DIM * 8,
        # grid_sample wants one dtype, and half precision cannot hold a location.
        prepare={"transformers": lambda i: {k: t if t.dtype == torch.float64 else t.float() for k, t in i.items()}},
    )


def benchmarks() -> list[Benchmark | Growth]:
    """Encoder and decoder of Deformable DETR."""
    square, wide = (sum(h * w for h, w in s) for s in (SQUARE, WIDE))
    gpu_forward = (Must("transformers", 8.0), Must("deformops", 1.15))
    gpu_training = (Must("transformers", 5.0, "training"), Must("deformops", 1.0, "training"))
    return [
        Benchmark(
            "ms_deform_attention",
            f"encoder {square} queries",
            lambda device, dtype: setup(SQUARE, square, device, dtype),
            cpu=(Must("transformers", 8.0), Must("transformers", 2.0, "training")),
            gpu=None,
        ),
        Benchmark(
            "ms_deform_attention",
            "decoder 300 queries",
            lambda device, dtype: setup(SQUARE, 300, device, dtype),
            cpu=(Must("transformers", 5.0),),
            gpu=None,
        ),
        Benchmark(
            "ms_deform_attention",
            f"encoder {wide} queries",
            lambda device, dtype: setup(WIDE, wide, device, dtype),
            cpu=None,
            gpu=(*gpu_forward, *gpu_training),
        ),
        Benchmark(
            "ms_deform_attention",
            "decoder 900 queries",
            lambda device, dtype: setup(WIDE, 900, device, dtype),
            cpu=None,
            gpu=gpu_forward,
        ),
        Growth(
            "ms_deform_attention",
            "encoder",
            grown,
            tokens=48 * 48 + 24 * 24 + 12 * 12 + 6 * 6,
        ),
    ]


def grown(device: torch.device, dtype: torch.dtype, factor: int) -> Setup:
    """An encoder call on maps of 48 x 48 to 6 x 6 times the square root of factor."""
    side = 48 * round(factor**0.5)
    shapes = tuple((side >> i, side >> i) for i in range(4))
    return setup(shapes, sum(h * w for h, w in shapes), device, dtype)
