"""Launches of the causal kernels, and their operators registered with torch.library."""

from __future__ import annotations

from typing import Any

import torch
import triton

from zoo_kernels import tuning
from zoo_kernels.dispatch import interpreting, multiprocessors
from zoo_kernels.linear_attention import kernels_causal as kernels
from zoo_kernels.tiles import block, device_of, unit_stride

Tensor = torch.Tensor


def operands(dtype: torch.dtype) -> int:
    """How products take their operands: bfloat16 as such, float16 as tf32 (its sums leave its range)."""
    if dtype == torch.float32 or interpreting():
        return kernels.EXACT.value
    return kernels.BFLOAT16.value if dtype == torch.bfloat16 else kernels.TF32.value


def _constants(kernel: str, q: Tensor, v: Tensor, decay: Tensor | None, fmap: int, normalize: bool) -> dict[str, Any]:
    """``kernel``: the name in the tuning tables."""
    d, e = q.shape[-1], v.shape[-1]
    widest = max(block(d), block(e))
    default = {
        "BN": 32 if widest <= 64 else 16,
        "num_warps": 4 if widest <= 32 else 8,
        "num_stages": 2 if widest <= 64 else 1,
    }
    exact = {"dim": block(d), "value_dim": block(e), "decay": int(decay is not None), "bytes": q.element_size()}
    near = {"tokens": q.shape[2], "heads": q.shape[0] * q.shape[1]}
    return {
        "D": d,
        "E": e,
        "BD": block(d),
        "BE": block(e),
        "MAP": fmap,
        "NORM": normalize,
        "DECAY": decay is not None,
        "OPERANDS": operands(q.dtype),
        **tuning.config(kernel, q.device, default, exact=exact, near=near),
    }


def _segments(q: Tensor, size: int, single: bool) -> tuple[int, int]:
    """Segments of one head's tokens and the tokens of one: whole blocks, four and more unless ``single``."""
    blocks = triton.cdiv(q.shape[2], size)
    wanted = triton.cdiv(2 * multiprocessors(q.device), q.shape[0] * q.shape[1])
    per = 1 if single else max(min(4, blocks), triton.cdiv(blocks, wanted))
    return triton.cdiv(blocks, per), per * size


def _borders(
    x: Tensor,
    y: Tensor,
    inv: Tensor,
    delta: Tensor,
    rate: Tensor,
    segments: int,
    per: int,
    constants: dict[str, Any],
    queries: bool,
) -> tuple[Tensor, Tensor]:
    """States [bh, segment, BD, BE] and key rows [bh, segment, BD] at the segments' starts (of queries: ends)."""
    (b, h, n, _), bd, be = x.shape, constants["BD"], constants["BE"]
    state = torch.empty((b * h, segments, bd, be), dtype=torch.float32, device=x.device)
    z = torch.empty((b * h, segments, bd), dtype=torch.float32, device=x.device)
    with device_of(x):
        kernels.segment_kernel[(segments, b * h)](
            x, y, inv, delta, rate, state, z, *x.stride()[:3], *y.stride()[:3], h, n, per, QUERIES=queries, **constants
        )
    with device_of(x):
        kernels.scan_kernel[(b * h, bd // 16)](
            state, z, rate, segments, h, per,
            BD=bd, BE=be, ROWS=16, DECAY=constants["DECAY"], SUFFIX=queries, num_warps=4,
        )  # fmt: skip
    return state, z


def _rate(q: Tensor, decay: Tensor | None) -> Tensor:
    return q if decay is None else decay.float().log2().contiguous()


@torch.library.custom_op("zoo_kernels::causal_linear_attention", mutates_args=())
def _op(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, fmap: int, normalize: bool, eps: float, lags: bool
) -> tuple[Tensor, Tensor]:
    """out, and one over the denominators [B*h, N] (empty if not normalised)."""
    b, h, n, _ = q.shape
    out = torch.empty((b, n, h, v.shape[-1]), dtype=v.dtype, device=v.device).transpose(1, 2)
    inv = torch.empty((b * h, n if normalize else 0), dtype=torch.float32, device=q.device)
    if b == 0:
        return out, inv
    q, k, v, rate = unit_stride(q), unit_stride(k), unit_stride(v), _rate(q, decay)
    constants = _constants("linear_causal_forward", q, v, decay, fmap, normalize)
    segments, per = _segments(q, constants["BN"], False)
    prefix, z = _borders(k, v, inv, inv, rate, segments, per, constants, False)
    with device_of(q):
        kernels.causal_output_kernel[(segments, b * h)](
            q, k, v, rate, prefix, z, out, inv, *(s for x in (q, k, v, out) for s in x.stride()[:3]),
            h, n, per, eps, **constants,
        )  # fmt: skip
    return out, inv


@_op.register_fake
def _(q, k, v, decay, fmap, normalize, eps, lags):  # type: ignore[no-untyped-def]
    b, h, n, _ = q.shape
    out = v.new_empty((b, n, h, v.shape[-1])).transpose(1, 2)
    return out, q.new_empty((b * h, n if normalize else 0), dtype=torch.float32)


@torch.library.custom_op("zoo_kernels::causal_linear_attention_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    out: Tensor,
    inv: Tensor,
    fmap: int,
    normalize: bool,
    lags: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, and the gradient of decay (empty unless ``lags``)."""
    b, h, n, _ = q.shape
    dq, dk, dv = (
        torch.empty((b, n, h, x.shape[-1]), dtype=x.dtype, device=x.device).transpose(1, 2) for x in (q, k, v)
    )
    ddecay = torch.zeros((h if lags else 0,), dtype=q.dtype, device=q.device)
    if b == 0:
        return dq, dk, dv, ddecay
    q, k, v, grad, rate = unit_stride(q), unit_stride(k), unit_stride(v), unit_stride(grad), _rate(q, decay)
    constants = _constants("linear_causal_backward", q, v, decay, fmap, normalize)
    # Segments of one block where decay has a gradient: the states at every border are part of it.
    segments, per = _segments(q, constants["BN"], lags)
    delta = torch.empty_like(inv)
    in_query, in_key = (torch.empty((b * h, segments), dtype=torch.float32, device=q.device) for _ in range(2))
    prefix, z = _borders(k, v, inv, delta, rate, segments, per, constants, False)
    with device_of(q):
        kernels.causal_query_grad_kernel[(segments, b * h)](
            q, k, v, out, grad, rate, prefix, z, inv, delta, dq, in_query,
            *(s for x in (q, k, v, out, grad, dq) for s in x.stride()[:3]), h, n, per, LAG=lags, **constants,
        )  # fmt: skip
    suffix, suffix_z = _borders(q, grad, inv, delta, rate, segments, per, constants, True)
    with device_of(q):
        kernels.causal_key_grad_kernel[(segments, b * h)](
            q, k, v, grad, rate, suffix, suffix_z, inv, delta, dk, dv, in_key,
            *(s for x in (q, k, v, grad, dk, dv) for s in x.stride()[:3]), h, n, per, LAG=lags, **constants,
        )  # fmt: skip
    if lags and decay is not None:
        # Sum of lag * weight * its gradient: the lag is that in the query's block, in the key's, and whole blocks.
        through = (prefix * suffix).sum((2, 3))
        if normalize:
            through = through + (z * suffix_z).sum(2)
        total = (in_query + in_key).view(b, h, segments).sum((0, 2))
        decay = decay.float()
        ddecay = (total / decay + through.view(b, h, segments).sum((0, 2)) * per * decay ** (per - 1)).to(q.dtype)
    return dq, dk, dv, ddecay


@_backward_op.register_fake
def _(grad, q, k, v, decay, out, inv, fmap, normalize, lags):  # type: ignore[no-untyped-def]
    b, h, n, _ = q.shape
    made = (x.new_empty((b, n, h, x.shape[-1])).transpose(1, 2) for x in (q, k, v))
    return *made, q.new_empty((h if lags else 0,))


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, decay, ctx.fmap, ctx.normalize, _, ctx.lags = inputs
    ctx.save_for_backward(q, k, v, decay, *output)
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, _):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 8
    dq, dk, dv, ddecay = _backward_op(grad, *ctx.saved_tensors, ctx.fmap, ctx.normalize, ctx.lags)
    return dq, dk, dv, ddecay if ctx.lags else None, None, None, None, None


_op.register_autograd(_autograd, setup_context=_setup)


def causal(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, fmap: int, normalize: bool, eps: float) -> Tensor:
    """Causal linear attention with the elementwise map number ``fmap`` of the kernels."""
    return _op(q, k, v, decay, fmap, normalize, eps, decay is not None and decay.requires_grad)[0]
