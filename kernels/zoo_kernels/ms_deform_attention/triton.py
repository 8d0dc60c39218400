"""Multi-scale deformable attention on the GPU: launches of the kernels and their autograd.

Where there are as many queries as positions (an encoder), tiles of queries are tiles of the image rather than of a
raster line, so that their samples share cache lines; values are made head-major first, so that neighbours in x do.

The backward adds the value's gradient with atomics; under ``torch.use_deterministic_algorithms(True)`` it is summed in
a fixed order instead (the sorted bags of :mod:`zoo_kernels.ms_deform_attention.eager`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
from torch import Tensor

from zoo_kernels import tuning
from zoo_kernels.dispatch import multiprocessors
from zoo_kernels.ms_deform_attention import eager
from zoo_kernels.ms_deform_attention.kernels import backward_kernel, forward_kernel
from zoo_kernels.testing import BuildCase

Levels = tuple[tuple[int, int], ...]

#: Largest head_dim: two lines of it and their gradient stay in registers.
_MAX_DIM = 256


def can_run(value: Tensor, *args: object) -> str | None:
    """Why the kernels cannot serve a call, or None."""
    if value.shape[3] > _MAX_DIM:
        return f"head_dim {value.shape[3]} is larger than {_MAX_DIM}"
    if value[0].numel() >= 2**31 if value.shape[0] else False:
        return f"value has {value[0].numel()} numbers an image, the kernels address fewer than 2**31"
    return None


forward_fused_can_run = can_run


def forward(value: Tensor, shapes: Levels, locations: Tensor, weights: Tensor, points: tuple[int, ...]) -> Tensor:
    """Classic form: value [B,S,h,d], locations [B,Q,h,T,2], weights [B,Q,h,T] -> [B,Q,h*d]."""
    return _attend(value, None, locations, weights, [n for s in shapes for n in s], list(points))


def forward_fused(
    value: Tensor, shapes: Levels, reference: Tensor, offsets: Tensor, logits: Tensor, points: tuple[int, ...]
) -> Tensor:
    """From raw offsets [B,Q,h,T,2], logits [B,Q,h,T] and references [B,Q,L,2|4]."""
    return _attend(value, reference, offsets, logits, [n for s in shapes for n in s], list(points))


@lru_cache(maxsize=64)
def _level_table(flat: tuple[int, ...], points: tuple[int, ...], device: torch.device) -> Tensor:
    rows, start = [], 0
    for h, w, n in zip(flat[::2], flat[1::2], points):
        rows.append([h, w, start, n])
        start += h * w
    return torch.tensor(rows, dtype=torch.int32, device=device)


@lru_cache(maxsize=64)
def _tile_order(flat: tuple[int, ...], device: torch.device) -> Tensor:
    """Positions of all levels, 4 x 8 tile by 4 x 8 tile: int32 [S]."""
    parts, start = [], 0
    for h, w in zip(flat[::2], flat[1::2]):
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        tile = (y // 4) * (-(-w // 8)) + x // 8
        parts.append(torch.argsort(tile.reshape(-1), stable=True) + start)
        start += h * w
    return torch.cat(parts).to(device=device, dtype=torch.int32)


def _launch(
    kernel: str, value: Tensor, reference: Tensor | None, xy: Tensor, shapes: Sequence[int], points: Sequence[int]
) -> tuple[tuple[int, int], dict[str, object], Tensor, Tensor]:
    """Grid, the launch arguments that both kernels share, the level table and the order of the queries."""
    b, q, h, t, _ = xy.shape
    d = value.shape[3]
    padded = triton.next_power_of_2(d)
    # 1024 numbers of a corner a program: 8 in each of 128 threads. Fewer queries where the card would not be filled.
    block = max(8, min(64, 1024 // padded))
    if triton.cdiv(q, block) * b * h < 2 * multiprocessors(value.device):
        block = max(8, block // 2)
    own = tuning.config(
        kernel,
        value.device,
        {"BLOCK": block, "num_warps": 4},
        exact={"dim": padded, "samples": t, "bytes": value.element_size()},
        near={"queries": q, "heads": b * h},
    )
    block = own["BLOCK"]
    flat = tuple(shapes)
    ordered = q == value.shape[1] and q > block
    levels = _level_table(flat, tuple(points), value.device)
    arguments: dict[str, object] = {
        "L": len(points),
        "T": t,
        "TP": triton.next_power_of_2(t),
        "D": d,
        "DP": padded,
        "MODE": 0 if reference is None else reference.shape[-1],
        "ORDERED": ordered,
        **own,
    }
    order = _tile_order(flat, value.device) if ordered else levels
    return (triton.cdiv(q, block), b * h), arguments, levels, order


def _readable(value: Tensor, queries: int) -> Tensor:
    """Head-major where the samples outweigh the copy; otherwise any strides with contiguous channels."""
    if value.stride(3) != 1 or (queries * 4 >= value.shape[1] and value.stride(1) != value.shape[3]):
        return value.transpose(1, 2).contiguous().transpose(1, 2)
    return value


@torch.library.custom_op("zoo_kernels::ms_deform_attention_triton", mutates_args=())
def _attend(
    value: Tensor,
    reference: Tensor | None,
    xy: Tensor,
    weights: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
) -> Tensor:
    b, _, h, d = value.shape
    q = xy.shape[1]
    out = torch.empty(b, q, h * d, dtype=value.dtype, device=value.device)
    if out.numel() == 0:
        return out
    value, xy, weights = _readable(value, q), xy.contiguous(), weights.contiguous()
    grid, arguments, levels, order = _launch("ms_deform_forward", value, reference, xy, shapes, points)
    reference = weights if reference is None else reference.contiguous()
    strides = (value.stride(0), value.stride(1), value.stride(2))
    forward_kernel[grid](value, reference, xy, weights, levels, order, out, *strides, q, h, **arguments)
    return out


@_attend.register_fake
def _(value, reference, xy, weights, shapes, points):
    return value.new_empty(value.shape[0], xy.shape[1], value.shape[2] * value.shape[3])


@_attend.register_vmap
def _(info, in_dims, *args):
    return eager.fold_vmap(_attend, info, in_dims, args)


@torch.library.custom_op("zoo_kernels::ms_deform_attention_triton_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    value: Tensor,
    reference: Tensor | None,
    xy: Tensor,
    weights: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    need_value: bool,
    need_reference: bool,
    need_samples: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, s, h, d = value.shape
    q = xy.shape[1]
    mode = 0 if reference is None else reference.shape[-1]
    samples = need_samples or need_reference
    atomic = need_value and not torch.are_deterministic_algorithms_enabled()
    grad_value = torch.zeros((b, h, s, d) if atomic else 0, dtype=torch.float32, device=value.device)
    partial = torch.zeros(
        (b, q, h, len(points), mode) if need_reference else 0, dtype=torch.float32, device=value.device
    )
    grad_xy = torch.empty(xy.shape if samples else 0, dtype=xy.dtype, device=xy.device)
    grad_weights = torch.empty(weights.shape if samples else 0, dtype=weights.dtype, device=weights.device)
    half = samples and mode and weights.dtype != torch.float32
    scratch = torch.empty_like(grad_weights, dtype=torch.float32) if half else grad_weights
    if b * q and (samples or atomic):
        readable, xy_, weights_ = _readable(value, q), xy.contiguous(), weights.contiguous()
        grid, arguments, levels, order = _launch("ms_deform_backward", value, reference, xy, shapes, points)
        backward_kernel[grid](
            grad.contiguous(),
            readable,
            weights_ if reference is None else reference.contiguous(),
            xy_,
            weights_,
            levels,
            order,
            grad_value,
            partial,
            grad_xy,
            grad_weights,
            scratch,
            readable.stride(0),
            readable.stride(1),
            readable.stride(2),
            s,
            q,
            h,
            SAMPLES=samples,
            REFERENCE=need_reference,
            ATOMIC=atomic,
            **arguments,
        )
    if need_value and not atomic:
        grad_value = _ordered_value_gradient(grad, value, reference, xy, weights, shapes, points)
    elif need_value:
        grad_value = grad_value.transpose(1, 2).to(value.dtype, memory_format=torch.contiguous_format)
    grad_reference = partial.sum(2) if need_reference else partial
    if reference is not None:
        grad_reference = grad_reference.to(reference.dtype)
    return grad_value, grad_reference, grad_xy, grad_weights


@_attend_backward.register_fake
def _(grad, value, reference, xy, weights, shapes, points, need_value, need_reference, need_samples):
    samples = need_samples or need_reference
    return (
        value.new_empty(value.shape if need_value else 0),
        value.new_empty(0) if reference is None else reference.new_empty(reference.shape if need_reference else 0),
        xy.new_empty(xy.shape if samples else 0),
        weights.new_empty(weights.shape if samples else 0),
    )


def _ordered_value_gradient(
    grad: Tensor,
    value: Tensor,
    reference: Tensor | None,
    xy: Tensor,
    weights: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
) -> Tensor:
    """The value's gradient without atomics."""
    if reference is not None:
        levels = tuple(zip(shapes[::2], shapes[1::2]))
        xy = eager.pixel_coordinates(reference.float(), xy.float(), levels, tuple(points))
        weights = weights.softmax(-1, dtype=torch.float32)
    return eager._attend_backward(grad, value, xy, weights, shapes, points, reference is None, True, False)[0]


def _setup(ctx, inputs, output):
    value, reference, xy, weights, ctx.shapes, ctx.points = inputs
    ctx.save_for_backward(value, reference, xy, weights)


def _backward(ctx, grad):
    need_value, need_reference, need_xy, need_weights = ctx.needs_input_grad[:4]
    dv, dr, dxy, dw = _attend_backward(
        grad, *ctx.saved_tensors, ctx.shapes, ctx.points, need_value, need_reference, need_xy or need_weights
    )
    return (
        dv if need_value else None,
        dr if need_reference else None,
        dxy if need_xy else None,
        dw if need_weights else None,
        None,
        None,
    )


_attend.register_autograd(_backward, setup_context=_setup)


def build_cases() -> dict[str, BuildCase]:
    """An encoder and a decoder call in bfloat16, as the build guard compiles them."""
    from zoo_kernels.ms_deform_attention import ms_deform_attention, ms_deform_attention_fused

    shapes = ((64, 64), (32, 32), (16, 16), (8, 8))
    total, half = sum(h * w for h, w in shapes), torch.bfloat16

    def samples(queries: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, queries, 8, 4, 4, 2), torch.zeros(1, queries, 8, 4, 4)

    value = torch.zeros(1, total, 8, 32, dtype=half)
    off_d, logits_d = (t.to(half) for t in samples(300))
    off_e, logits_e = (t.to(half) for t in samples(total))
    none = ("forward_kernel", "backward_kernel")
    return {
        "encoder": BuildCase(
            ms_deform_attention_fused,
            (value, shapes, torch.zeros(1, total, 4, 2), off_e, logits_e),
            no_tensor_cores=none,
        ),
        "decoder-boxes": BuildCase(
            ms_deform_attention_fused,
            (value, shapes, torch.zeros(1, 300, 4, 4), off_d, logits_d),
            no_tensor_cores=none,
        ),
        "locations": BuildCase(ms_deform_attention, (value, shapes, *samples(total)), no_tensor_cores=none),
        "head-dim-64": BuildCase(
            ms_deform_attention,
            (torch.zeros(1, total, 8, 64, dtype=half), shapes, *samples(total)),
            no_tensor_cores=none,
        ),
    }
