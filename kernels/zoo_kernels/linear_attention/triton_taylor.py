"""Launches of the TaylorShift kernels, and their operators registered with torch.library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton

from zoo_kernels import tuning
from zoo_kernels.dispatch import multiprocessors
from zoo_kernels.linear_attention import kernels_taylor as kernels
from zoo_kernels.linear_attention.triton_causal import operands
from zoo_kernels.tiles import block, device_of, unit_stride

Tensor = torch.Tensor


def _constants(kernel: str, q: Tensor, v: Tensor, heat: Tensor | None, normalize: bool, linear: bool) -> dict[str, Any]:
    """``kernel``: the name in the tuning tables."""
    d, e = q.shape[-1], v.shape[-1]
    widest = max(block(d), block(e))
    default = {
        "BN": 64 if widest <= 64 else 32,
        "num_warps": 4 if widest <= 32 else 8,
        "num_stages": 2 if widest <= 64 else 1,
    }
    exact = {"dim": block(d), "value_dim": block(e), "linear": int(linear), "bytes": q.element_size()}
    near = {"queries": q.shape[2], "keys": v.shape[2], "heads": q.shape[0] * q.shape[1]}
    return {
        "D": d,
        "E": e,
        "BD": block(d),
        "BE": block(e),
        "NORMALIZE": normalize,
        "HEAT": heat is not None,
        "OPERANDS": operands(q.dtype),
        **tuning.config(kernel, q.device, default, exact=exact, near=near),
    }


def _tokens_first(x: Tensor, width: int) -> Tensor:
    """An empty [b, h, n, width] lying in memory as [b, n, h, width]."""
    b, h, n, _ = x.shape
    return torch.empty((b, n, h, width), dtype=x.dtype, device=x.device).transpose(1, 2)


def _strides(*of: Tensor) -> tuple[int, ...]:
    return tuple(s for x in of for s in x.stride()[:3])


def _state(
    x: Tensor, y: Tensor, heat: Tensor, inv: Tensor, delta: Tensor, queries: bool, constants: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """state [bh, D+1, BD, BE], z [bh, D+1, BD], u [bh, BE]; split over the tokens where heads and slices are few."""
    (b, h, n, d), bd, be, bn = x.shape, constants["BD"], constants["BE"], constants["BN"]
    blocks = triton.cdiv(n, bn)
    wanted = triton.cdiv(2 * multiprocessors(x.device), b * h * (d + 1))
    per = max(min(4, blocks), triton.cdiv(blocks, wanted))
    splits = triton.cdiv(blocks, per)
    sizes = ((d + 1, bd, be), (d + 1, bd), (be,))
    parts = [torch.empty((b * h, splits, *size), dtype=torch.float32, device=x.device) for size in sizes]
    with device_of(x):
        kernels.second_order_state_kernel[(d + 1, splits, b * h)](
            x, y, heat, inv, delta, *parts, *_strides(x, y), h, n, per * bn, QUERIES=queries, **constants
        )
    state, z, u = (p.squeeze(1) if splits == 1 else p.sum(1) for p in parts)
    return state, z, u


@torch.library.custom_op("zoo_kernels::taylor_attention", mutates_args=())
def _op(
    q: Tensor, k: Tensor, v: Tensor, heat: Tensor | None, abc: Sequence[float], normalize: bool, linear: bool
) -> tuple[Tensor, Tensor]:
    """out, and one over the sums of weights [B*h, N]. ``heat``: temperature [h] in float32."""
    (b, h, n, _), m = q.shape, k.shape[2]
    out = _tokens_first(q, v.shape[-1])
    inv = torch.empty((b * h, n), dtype=torch.float32, device=q.device)
    if b == 0:
        return out, inv
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    constants = _constants("linear_taylor_forward", q, v, heat, normalize, linear)
    warm = inv if heat is None else heat.contiguous()
    grid = (triton.cdiv(n, constants["BN"]), b * h)
    if linear:
        states = _state(k, v, warm, inv, inv, False, constants)
        with device_of(q):
            kernels.second_order_output_kernel[grid](
                q, warm, *states, out, inv, *_strides(q, out), h, n, float(m), *abc, **constants
            )
        return out, inv
    with device_of(q):
        kernels.direct_output_kernel[grid](q, k, v, warm, out, inv, *_strides(q, k, v, out), h, n, m, *abc, **constants)
    return out, inv


@_op.register_fake
def _(q, k, v, heat, abc, normalize, linear):  # type: ignore[no-untyped-def]
    b, h, n, _ = q.shape
    return q.new_empty((b, n, h, v.shape[-1])).transpose(1, 2), q.new_empty((b * h, n), dtype=torch.float32)


@torch.library.custom_op("zoo_kernels::taylor_attention_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heat: Tensor | None,
    out: Tensor,
    inv: Tensor,
    abc: Sequence[float],
    normalize: bool,
    linear: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, and the gradient of heat [h] (empty without one)."""
    (b, h, n, d), m, e = q.shape, k.shape[2], v.shape[-1]
    dq, dk, dv = _tokens_first(q, d), _tokens_first(k, d), _tokens_first(v, e)
    if b == 0:
        return dq, dk, dv, torch.zeros((0 if heat is None else h,), dtype=torch.float32, device=q.device)
    q, k, v, grad = unit_stride(q), unit_stride(k), unit_stride(v), unit_stride(grad)
    constants = _constants("linear_taylor_backward", q, v, heat, normalize, linear)
    warm = inv if heat is None else heat.contiguous()
    delta = torch.empty_like(inv)
    dheat = torch.empty((b * h, 0 if heat is None else n), dtype=torch.float32, device=q.device)
    of_queries, of_keys = ((triton.cdiv(x, constants["BN"]), b * h) for x in (n, m))
    if linear:
        states = _state(k, v, warm, inv, delta, False, constants)
        with device_of(q):
            kernels.second_order_grad_kernel[of_queries](
                q, grad, out, warm, *states, inv, delta, dheat, dq, dq,
                *_strides(q, grad, out, dq, dq), h, n, *abc, QUERIES=True, **constants,
            )  # fmt: skip
        states = _state(q, grad, warm, inv, delta, True, constants)
        with device_of(q):
            kernels.second_order_grad_kernel[of_keys](
                k, v, out, warm, *states, inv, delta, dheat, dk, dv,
                *_strides(k, v, out, dk, dv), h, m, *abc, QUERIES=False, **constants,
            )  # fmt: skip
    else:
        with device_of(q):
            kernels.direct_query_grad_kernel[of_queries](
                q, k, v, warm, out, grad, inv, delta, dheat, dq,
                *_strides(q, k, v, out, grad, dq), h, n, m, abc[0], abc[1], **constants,
            )  # fmt: skip
        with device_of(q):
            kernels.direct_key_grad_kernel[of_keys](
                q, k, v, warm, grad, inv, delta, dk, dv,
                *_strides(q, k, v, grad, dk, dv), h, n, m, *abc, **constants,
            )  # fmt: skip
    return dq, dk, dv, dheat.new_empty((0,)) if heat is None else dheat.view(b, h, n).sum((0, 2))


@_backward_op.register_fake
def _(grad, q, k, v, heat, out, inv, abc, normalize, linear):  # type: ignore[no-untyped-def]
    made = (x.new_empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3])).transpose(1, 2) for x in (q, k, v))
    return *made, inv.new_empty((0 if heat is None else q.shape[1],))


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, heat, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, heat, *output)
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, _):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 7
    dq, dk, dv, dheat = _backward_op(grad, *ctx.saved_tensors, *ctx.options)
    return dq, dk, dv, None if ctx.saved_tensors[3] is None else dheat, None, None, None


_op.register_autograd(_autograd, setup_context=_setup)


def taylor(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    temperature: Tensor | None,
    coefficients: tuple[float, float, float],
    normalize_input: bool,
    output_scale: float,
    linear: bool,
) -> Tensor:
    """TaylorShift attention; a scale of the output is one more pass over it."""
    heat = None if temperature is None else temperature.float()
    out = _op(q, k, v, heat, list(coefficients), normalize_input, linear)[0]
    return out if output_scale == 1.0 else out * output_scale
