"""Launches of the kernels of HaloNet's blocked attention, and their operators registered with torch.library."""

from __future__ import annotations

from typing import Any

import torch
import triton

from zoo_kernels import tuning
from zoo_kernels.dispatch import interpreting
from zoo_kernels.neighborhood_attention import kernels_halo as kernels
from zoo_kernels.tiles import block, device_of, unit_stride

Tensor = torch.Tensor

#: Widest window of which a program holds a row of logits for each of its queries.
MAX_WINDOW = 64


def _constants(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, columns: Tensor | None, size: int, halo: int
) -> dict[str, Any]:
    """``kernel``: the name in the tuning tables."""
    d, e = q.shape[-1], v.shape[-1]
    side = size * q.shape[1] // k.shape[1]
    default = {
        "TQ": block(side * side, high=64),
        "num_warps": 4 if max(block(d), block(e)) <= 32 else 8,
        "num_stages": 2,
    }
    if kernel == "halo_grad_kv":
        default["TK"] = block(size * size, high=64)
    exact = {
        "dim": block(d),
        "value_dim": block(e),
        "window": block(size + 2 * halo),
        "position": int(rows is not None or columns is not None),
        "bytes": q.element_size(),
    }
    near = {"queries": q.shape[1] * q.shape[2], "block": side * side, "heads": q.shape[0] * q.shape[3]}
    return {
        "BLOCK": size,
        "SIDE": side,
        "HALO": halo,
        "WIN": size + 2 * halo,
        "D": d,
        "E": e,
        "BD": block(d),
        "BE": block(e),
        "HIGH": rows is not None,
        "WIDE": columns is not None,
        "PRECISION": "ieee" if q.dtype == torch.float32 or interpreting() else "tf32",
        **tuning.config(kernel, q.device, default, exact=exact, near=near),
    }


def _strides(*of: Tensor) -> tuple[int, ...]:
    return tuple(s for x in of for s in x.stride()[:4])


def _positions(q: Tensor, rows: Tensor | None, columns: Tensor | None) -> list[Tensor]:
    """Logits of the position by row and by column of the window, [B, QY, QX, H, WIN], float32; q where there are none.

    rows, columns: [side, WIN, D] in float32, the table's entry for each query of a block and place in its window.
    """
    high = wide = q
    if rows is not None:
        high = torch.einsum("bnyxhd,ywd->bnyxhw", q.float().unflatten(1, (-1, rows.shape[0])), rows).flatten(1, 2)
    if columns is not None:
        wide = torch.einsum("bynxhd,xwd->bynxhw", q.float().unflatten(2, (-1, columns.shape[0])), columns).flatten(2, 3)
    return [high.contiguous() if rows is not None else q, wide.contiguous() if columns is not None else q]


@torch.library.custom_op("zoo_kernels::halo_attention", mutates_args=())
def _op(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, columns: Tensor | None, size: int, halo: int, scale: float
) -> tuple[Tensor, Tensor]:
    """out [B, QY, QX, H, E] and the logits' log-sum-exp, base 2, [B, H, QY, QX]."""
    B, QY, QX, H, _ = q.shape
    out = torch.empty((B, QY, QX, H, v.shape[-1]), dtype=v.dtype, device=v.device)
    lse = torch.empty((B, H, QY, QX), dtype=torch.float32, device=q.device)
    if B == 0:
        return out, lse
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    constants = _constants("halo_forward", q, k, v, rows, columns, size, halo)
    positions = _positions(q, rows, columns)
    KY, KX = k.shape[1:3]
    tiles = triton.cdiv(constants["SIDE"] ** 2, constants["TQ"]) * (KY // size) * (KX // size)
    with device_of(q):
        kernels.halo_forward_kernel[(tiles, H, B)](
            q, k, v, *positions, out, lse, *_strides(q, k, v, out),
            H, QY, QX, KY, KX, scale, BW=block(constants["WIN"]), **constants,
        )  # fmt: skip
    return out, lse


@_op.register_fake
def _(q, k, v, rows, columns, size, halo, scale):  # type: ignore[no-untyped-def]
    B, QY, QX, H, _ = q.shape
    return v.new_empty((B, QY, QX, H, v.shape[-1])), q.new_empty((B, H, QY, QX), dtype=torch.float32)


@torch.library.custom_op("zoo_kernels::halo_attention_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    out: Tensor,
    lse: Tensor,
    size: int,
    halo: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, and the gradients of rows and columns (empty where there are none)."""
    B, QY, QX, H, _ = q.shape
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    # dq is rounded once, after the positions' part has been added.
    dq = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    dtables = [
        torch.zeros((0,) if x is None else x.shape, dtype=torch.float32, device=q.device) for x in (rows, columns)
    ]
    if B == 0:
        return dq.to(q.dtype), dk, dv, *dtables
    q, k, v, grad = unit_stride(q), unit_stride(k), unit_stride(v), unit_stride(grad)
    constants = _constants("halo_grad_q", q, k, v, rows, columns, size, halo)
    positions = _positions(q, rows, columns)
    KY, KX = k.shape[1:3]
    blocks = (KY // size) * (KX // size)
    delta = torch.empty_like(lse)
    dhigh, dwide = (torch.empty(x.shape, dtype=torch.float32, device=q.device) for x in positions)
    with device_of(q):
        kernels.halo_query_grad_kernel[(triton.cdiv(constants["SIDE"] ** 2, constants["TQ"]) * blocks, H, B)](
            q, k, v, *positions, out, grad, lse, delta, dq, dhigh, dwide, *_strides(q, k, v, out, grad, dq),
            H, QY, QX, KY, KX, scale, BW=block(constants["WIN"]), **constants,
        )  # fmt: skip
    constants = _constants("halo_grad_kv", q, k, v, rows, columns, size, halo)
    with device_of(q):
        kernels.halo_key_grad_kernel[(triton.cdiv(size * size, constants["TK"]) * blocks, H, B)](
            q, k, v, *positions, grad, lse, delta, dk, dv, *_strides(q, k, v, grad, dk, dv),
            H, QY, QX, KY, KX, scale, NEAR=2 * triton.cdiv(halo, size) + 1, **constants,
        )  # fmt: skip
    if rows is not None:
        by_row, of_q = (x.unflatten(1, (-1, rows.shape[0])) for x in (dhigh, q.float()))
        dtables[0] = torch.einsum("bnyxhw,bnyxhd->ywd", by_row, of_q)
        dq += torch.einsum("bnyxhw,ywd->bnyxhd", by_row, rows).flatten(1, 2)
    if columns is not None:
        by_column, of_q = (x.unflatten(2, (-1, columns.shape[0])) for x in (dwide, q.float()))
        dtables[1] = torch.einsum("bynxhw,bynxhd->xwd", by_column, of_q)
        dq += torch.einsum("bynxhw,xwd->bynxhd", by_column, columns).flatten(2, 3)
    return dq.to(q.dtype), dk, dv, *dtables


@_backward_op.register_fake
def _(grad, q, k, v, rows, columns, out, lse, size, halo, scale):  # type: ignore[no-untyped-def]
    tables = (lse.new_empty((0,) if x is None else x.shape) for x in (rows, columns))
    return *(x.new_empty(x.shape) for x in (q, k, v)), *tables


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, rows, columns, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, rows, columns, *output)
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, _):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 8
    rows, columns = ctx.saved_tensors[3:5]
    dq, dk, dv, drows, dcolumns = _backward_op(grad, *ctx.saved_tensors, *ctx.options)
    return dq, dk, dv, None if rows is None else drows, None if columns is None else dcolumns, None, None, None


_op.register_autograd(_autograd, setup_context=_setup)


def halo(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_size: int,
    halo_size: int,
    rel_height: Tensor | None,
    rel_width: Tensor | None,
    scale: float,
    scale_position: bool,
) -> Tensor:
    """Rows of the position tables for each query of a block; the rest in the registered operators."""
    side, win = block_size * q.shape[1] // k.shape[1], block_size + 2 * halo_size
    # Row of the table for window position j and query x of a block: j - x + win - 1.
    at = torch.arange(win, device=q.device) - torch.arange(side, device=q.device)[:, None] + win - 1  # [side, win]
    factor = scale if scale_position else 1.0
    rows, columns = (None if t is None else t.float()[at] * factor for t in (rel_height, rel_width))
    return _op(q, k, v, rows, columns, block_size, halo_size, scale)[0]
