"""Super tokens on the GPU: three operations that are each other's gradients.

``products(x, t)[k, p] = <x_p, t_k>``, ``gather(x, a)_k = sum_p a_kp x_p`` and ``spread(t, a)_p = sum_k a_kp t_k``, each
over the nine cells around, are the derivatives of one trilinear form: the backward of any of them is the other two.
With constant affinities (the authors' rule) association and update run fused, one read of the map an iteration.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from zoo_kernels import tuning
from zoo_kernels.dispatch import interpreting
from zoo_kernels.super_token import eager
from zoo_kernels.super_token.kernels import cell_kernel, fold_kernel, mean_kernel, spread_kernel
from zoo_kernels.testing import BuildCase

#: Channels that a program holds at once, of 16 pixels and of the nine tokens.
_MAX_DIM = 512


def can_run(x: Tensor, *args: object) -> str | None:
    """Why the kernels cannot serve a call, or None."""
    if x.shape[-1] > _MAX_DIM:
        return f"{x.shape[-1]} channels are more than {_MAX_DIM}"
    return None


back_project_can_run = can_run


def forward(
    x: Tensor, cell: tuple[int, int], iterations: int, scale: float, eps: float, affinity_grad: bool
) -> tuple[Tensor, Tensor]:
    """x [B,H,W,C] -> tokens [B,hh,ww,C], affinity [B,hh,ww,9,ch*cw]."""
    if not (affinity_grad and x.requires_grad):
        tokens, affinity, _ = _super_token(x, list(cell), iterations, scale, eps)
        return tokens, affinity
    tokens = eager._cells(x, cell).mean(3)
    for _ in range(iterations):
        # Affinities stay in float32 here: the softmax's backward would magnify their rounding.
        affinity = _associate(x, tokens, list(cell), scale)
        total = eager._fold(affinity.sum(-1, keepdim=True))
        tokens = (_gather(x, affinity, list(cell)) / (total + eps)).to(x.dtype)
    return tokens, affinity.to(x.dtype)


def back_project(tokens: Tensor, affinity: Tensor, cell: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """tokens [B,hh,ww,D], affinity [B,hh,ww,9,P] -> [B,H,W,D]."""
    return _spread(tokens, affinity, list(cell), list(size))


def _tile(kernel: str, like: Tensor, cell: Sequence[int], cells: int) -> dict[str, int]:
    """Channels padded, pixels of a step (8192 numbers of the map at once), and warps; ``like`` [..., C]."""
    padded = max(16, triton.next_power_of_2(like.shape[-1]))
    pixels = triton.next_power_of_2(cell[0] * cell[1])
    own = tuning.config(
        kernel,
        like.device,
        {"BP": max(16, min(pixels, 8192 // padded)), "num_warps": 4},
        exact={"dim": padded, "pixels": pixels, "bytes": like.element_size()},
        near={"cells": cells},
    )
    return {"CP": padded, **own}


def _precision(dtype: torch.dtype) -> str:
    """Tensor cores round float32 to tf32 unless told; its tolerance here is that of float32."""
    return "ieee" if dtype == torch.float32 or interpreting() else "tf32"


def _grid(x: Tensor, cell: Sequence[int]) -> tuple[int, int]:
    return -(-x.shape[1] // cell[0]), -(-x.shape[2] // cell[1])


def _cells(
    x: Tensor,
    tokens: Tensor | None,
    affinity: Tensor,
    cell: Sequence[int],
    *,
    scale: float | None = None,
    gather: bool = False,
) -> tuple[Tensor, Tensor]:
    """Launch the cell kernel: with tokens write affinity (scale None: bare products), with gather return the sums."""
    (b, h, w, c), (hh, ww) = x.shape, _grid(x, cell)
    g = b * hh * ww
    gathered = torch.empty((g, 9, c) if gather else 0, dtype=torch.float32, device=x.device)
    total = torch.empty((g, 9) if gather else 0, dtype=torch.float32, device=x.device)
    if g:
        cell_kernel[(g,)](
            x,
            x if tokens is None else tokens,
            affinity,
            gathered,
            total,
            0.0 if scale is None else scale,
            h,
            w,
            hh,
            ww,
            CH=cell[0],
            CW=cell[1],
            C=c,
            PRODUCTS=tokens is not None,
            SOFTMAX=scale is not None,
            GATHER=gather,
            PRECISION=_precision(x.dtype),
            **_tile("super_token_cell", x, cell, g),
        )
    return gathered, total


def _folded(gathered: Tensor, total: Tensor, shape: Sequence[int], dtype: torch.dtype, eps: float | None = None):
    """Sum what the cells give to each token; with eps divide. Returns tokens of ``shape`` and the denominators."""
    b, hh, ww, c = shape
    tokens = torch.empty(b, hh, ww, c, dtype=dtype, device=gathered.device)
    denominator = torch.empty((b, hh, ww) if eps is not None else 0, dtype=torch.float32, device=gathered.device)
    if b:
        fold_kernel[(b * hh * ww,)](
            gathered,
            total,
            tokens,
            denominator,
            eps or 0.0,
            hh,
            ww,
            C=c,
            CP=max(16, triton.next_power_of_2(c)),
            DIVIDE=eps is not None,
            num_warps=4,
        )
    return tokens, denominator


@torch.library.custom_op("zoo_kernels::super_token_triton", mutates_args=())
def _super_token(
    x: Tensor, cell: Sequence[int], iterations: int, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous()
    (b, h, w, c), (hh, ww) = x.shape, _grid(x, cell)
    tokens = torch.empty(b, hh, ww, c, dtype=x.dtype, device=x.device)
    affinity = torch.empty(b, hh, ww, 9, cell[0] * cell[1], dtype=x.dtype, device=x.device)
    denominator = torch.empty(b, hh, ww, dtype=torch.float32, device=x.device)
    if b:
        mean_kernel[(b * hh * ww,)](
            x, tokens, h, w, hh, ww, CH=cell[0], CW=cell[1], C=c, **_tile("super_token_mean", x, cell, b * hh * ww)
        )
    for _ in range(iterations):
        gathered, total = _cells(x, tokens, affinity, cell, scale=scale, gather=True)
        tokens, denominator = _folded(gathered, total, (b, hh, ww, c), x.dtype, eps)
    return tokens, affinity, denominator


@_super_token.register_fake
def _(x, cell, iterations, scale, eps):
    hh, ww = _grid(x, cell)
    return (
        x.new_empty(x.shape[0], hh, ww, x.shape[3]),
        x.new_empty(x.shape[0], hh, ww, 9, cell[0] * cell[1]),
        x.new_empty(x.shape[0], hh, ww, dtype=torch.float32),
    )


def _super_token_setup(ctx, inputs, output):
    x, ctx.cell = inputs[:2]
    _, affinity, denominator = output
    ctx.size = list(x.shape[1:3])
    ctx.save_for_backward(affinity, denominator)
    ctx.mark_non_differentiable(affinity, denominator)


def _super_token_backward(ctx, grad, _affinity, _denominator):
    affinity, denominator = ctx.saved_tensors
    return _spread((grad / denominator[..., None]).to(grad.dtype), affinity, ctx.cell, ctx.size), None, None, None, None


_super_token.register_autograd(_super_token_backward, setup_context=_super_token_setup)


@torch.library.custom_op("zoo_kernels::super_token_products_triton", mutates_args=())
def _products(x: Tensor, tokens: Tensor, cell: Sequence[int]) -> Tensor:
    hh, ww = _grid(x, cell)
    out = torch.empty(x.shape[0], hh, ww, 9, cell[0] * cell[1], dtype=torch.float32, device=x.device)
    _cells(x.contiguous(), tokens.contiguous(), out, cell)
    return out


@_products.register_fake
def _(x, tokens, cell):
    return x.new_empty(x.shape[0], *_grid(x, cell), 9, cell[0] * cell[1], dtype=torch.float32)


@torch.library.custom_op("zoo_kernels::super_token_associate_triton", mutates_args=())
def _associate(x: Tensor, tokens: Tensor, cell: Sequence[int], scale: float) -> Tensor:
    hh, ww = _grid(x, cell)
    out = torch.empty(x.shape[0], hh, ww, 9, cell[0] * cell[1], dtype=torch.float32, device=x.device)
    _cells(x.contiguous(), tokens.contiguous(), out, cell, scale=scale)
    return out


@_associate.register_fake
def _(x, tokens, cell, scale):
    return x.new_empty(x.shape[0], *_grid(x, cell), 9, cell[0] * cell[1], dtype=torch.float32)


def _associate_setup(ctx, inputs, output):
    x, tokens, ctx.cell, ctx.scale = inputs
    ctx.save_for_backward(x, tokens, output)


def _associate_backward(ctx, grad):
    x, tokens, affinity = ctx.saved_tensors
    dlogits = affinity * (grad - (affinity * grad).sum(3, keepdim=True)) * ctx.scale
    dx = _spread(tokens, dlogits, ctx.cell, list(x.shape[1:3]))
    return dx, _gather(x, dlogits, ctx.cell).to(tokens.dtype), None, None


_associate.register_autograd(_associate_backward, setup_context=_associate_setup)


@torch.library.custom_op("zoo_kernels::super_token_gather_triton", mutates_args=())
def _gather(x: Tensor, affinity: Tensor, cell: Sequence[int]) -> Tensor:
    gathered, total = _cells(x.contiguous(), None, affinity.contiguous(), cell, gather=True)
    return _folded(gathered, total, (x.shape[0], *_grid(x, cell), x.shape[3]), torch.float32)[0]


@_gather.register_fake
def _(x, affinity, cell):
    return x.new_empty(x.shape[0], *_grid(x, cell), x.shape[3], dtype=torch.float32)


def _gather_setup(ctx, inputs, output):
    x, affinity, ctx.cell = inputs
    ctx.save_for_backward(x, affinity)


def _gather_backward(ctx, grad):
    x, affinity = ctx.saved_tensors
    grad = grad.to(x.dtype)
    dx = _spread(grad, affinity, ctx.cell, list(x.shape[1:3]))
    return dx, _products(x, grad, ctx.cell).to(affinity.dtype), None


_gather.register_autograd(_gather_backward, setup_context=_gather_setup)


@torch.library.custom_op("zoo_kernels::super_token_spread_triton", mutates_args=())
def _spread(tokens: Tensor, affinity: Tensor, cell: Sequence[int], size: Sequence[int]) -> Tensor:
    b, hh, ww, c = tokens.shape
    out = torch.empty(b, size[0], size[1], c, dtype=tokens.dtype, device=tokens.device)
    if b:
        spread_kernel[(b * hh * ww,)](
            tokens.contiguous(),
            affinity.contiguous(),
            out,
            size[0],
            size[1],
            hh,
            ww,
            CH=cell[0],
            CW=cell[1],
            C=c,
            PRECISION=_precision(tokens.dtype),
            **_tile("super_token_spread", tokens, cell, b * hh * ww),
        )
    return out


@_spread.register_fake
def _(tokens, affinity, cell, size):
    return tokens.new_empty(tokens.shape[0], size[0], size[1], tokens.shape[3])


def _spread_setup(ctx, inputs, output):
    tokens, affinity, ctx.cell, _ = inputs
    ctx.save_for_backward(tokens, affinity)


def _spread_backward(ctx, grad):
    tokens, affinity = ctx.saved_tensors
    need_tokens, need_affinity = ctx.needs_input_grad[:2]
    return (
        _gather(grad, affinity, ctx.cell).to(tokens.dtype) if need_tokens else None,
        _products(grad, tokens, ctx.cell).to(affinity.dtype) if need_affinity else None,
        None,
        None,
    )


_spread.register_autograd(_spread_backward, setup_context=_spread_setup)


def build_cases() -> dict[str, BuildCase]:
    """The first two stages of STViT-S in bfloat16, with and without gradients through the affinities."""
    from zoo_kernels.super_token import back_project, super_token

    half = torch.bfloat16
    light = ("mean_kernel", "fold_kernel")
    return {
        "cell-8": BuildCase(super_token, (torch.zeros(2, 56, 56, 64, dtype=half),), {"cell": 8}, no_tensor_cores=light),
        "cell-4": BuildCase(
            super_token,
            (torch.zeros(2, 28, 28, 128, dtype=half),),
            {"cell": 4, "affinity_grad": True},
            no_tensor_cores=light,
        ),
        "back": BuildCase(
            back_project,
            (torch.zeros(2, 7, 7, 64, dtype=half), torch.zeros(2, 7, 7, 9, 64, dtype=half)),
            {"cell": 8, "size": (56, 56)},
            no_tensor_cores=light,
        ),
    }
