"""The Triton backend, registered with torch.library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton

from zoo_kernels import tuning
from zoo_kernels.dispatch import interpreting, multiprocessors
from zoo_kernels.neighborhood_attention import halo_attention, kernels, kernels_backward, neighborhood_attention
from zoo_kernels.neighborhood_attention.triton_halo import MAX_WINDOW
from zoo_kernels.neighborhood_attention.triton_halo import halo as halo
from zoo_kernels.testing import BuildCase
from zoo_kernels.tiles import block, device_of, unit_stride

Tensor = torch.Tensor

#: Widest head of which a program keeps a tile of queries and their outputs in registers.
MAX_DIM = 128
#: Queries (in the backward of keys: keys) of a tile, and keys of a block.
TILE = 64
#: The kernels' names of what a window is made of: kernel, dilation, stride and causal flag on each axis.
WINDOW = ("KZ", "KY", "KX", "DZ", "DY", "DX", "SZ", "SY", "SX", "CZ", "CY", "CX")


def _constants(q: Tensor, v: Tensor, window: Sequence[int], bias: Tensor | None) -> dict[str, Any]:
    """``window`` is (kernel, dilation, stride, causal), each (z, y, x)."""
    d, e = q.shape[-1], v.shape[-1]
    bd, be = block(d), block(e)
    side = min(8, triton.next_power_of_2(triton.cdiv(q.shape[2], window[4])))
    return {
        **dict(zip(WINDOW, window)),
        "TY": side,
        "TX": TILE // side,
        "D": d,
        "E": e,
        "BD": bd,
        "BE": be,
        "BIAS": bias is not None,
        "PRECISION": "ieee" if q.dtype == torch.float32 or interpreting() else "tf32",
    }


def _tuned(
    kernel: str, q: Tensor, constants: dict[str, Any], *, warps: int | None = None, keys: int | None = None
) -> dict[str, Any]:
    """``constants`` and the launch configuration of ``kernel``, its name in the tuning tables."""
    wide = max(constants["BD"], constants["BE"]) > 64
    default = {
        "BK": keys or (TILE // 2 if wide else TILE),
        "num_warps": warps or (8 if wide else 4),
        "num_stages": 2,
    }
    exact = {
        "dim": constants["BD"],
        "value_dim": constants["BE"],
        "volume": int(constants["KZ"] > 1),
        "bias": int(constants["BIAS"]),
        "bytes": q.element_size(),
    }
    B, Z, Y, X, H, _ = q.shape
    near = {"positions": Z * Y * X, "window": constants["KZ"] * constants["KY"] * constants["KX"], "heads": B * H}
    return {**constants, **tuning.config(kernel, q.device, default, exact=exact, near=near)}


def _tiles(q: Tensor, constants: dict[str, Any]) -> tuple[int, int, int]:
    """Tiles on each axis of a plane's longest dilation group, and in all groups and planes together."""
    y = triton.cdiv(triton.cdiv(q.shape[2], constants["DY"]), constants["TY"])
    x = triton.cdiv(triton.cdiv(q.shape[3], constants["DX"]), constants["TX"])
    return y, x, q.shape[1] * y * x * constants["DY"] * constants["DX"]


@torch.library.custom_op("zoo_kernels::neighborhood_attention", mutates_args=())
def _op(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, window: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """out [B, Z, Y, X, H, E] and the logits' log-sum-exp, base 2, [B, H, Z, Y, X]."""
    B, Z, Y, X, H, _ = q.shape
    out = torch.empty((B, Z, Y, X, H, v.shape[-1]), dtype=v.dtype, device=v.device)
    lse = torch.empty((B, H, Z, Y, X), dtype=torch.float32, device=q.device)
    if B == 0:
        return out, lse
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    constants = _constants(q, v, window, bias)
    tiles_y, tiles_x, tiles = _tiles(q, constants)
    table = q if bias is None else bias.contiguous()
    strides = (s for x in (q, k, v, out) for s in x.stride()[:5])
    with device_of(q):
        kernels.forward_kernel[(tiles, H, B)](
            q, k, v, table, out, lse, *strides, H, Z, Y, X, tiles_y, tiles_x, scale,
            **_tuned("neighborhood_forward", q, constants),
        )  # fmt: skip
    return out, lse


@_op.register_fake
def _(q, k, v, bias, window, scale):  # type: ignore[no-untyped-def]
    B, Z, Y, X, H, _ = q.shape
    return v.new_empty((B, Z, Y, X, H, v.shape[-1])), q.new_empty((B, H, Z, Y, X), dtype=torch.float32)


@torch.library.custom_op("zoo_kernels::neighborhood_attention_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, and dbias (empty without a bias)."""
    B, Z, Y, X, H, _ = q.shape
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    dbias = torch.zeros((0,) if bias is None else bias.shape, dtype=torch.float32, device=q.device)
    if B == 0:
        return dq, dk, dv, dbias.to(q.dtype)
    q, k, v, grad = unit_stride(q), unit_stride(k), unit_stride(v), unit_stride(grad)
    constants = _constants(q, v, window, bias)
    tiles_y, tiles_x, tiles = _tiles(q, constants)
    table = q if bias is None else bias.contiguous()
    delta = torch.empty_like(lse)
    parts, pairs, room = B, lse, 1
    if bias is not None:
        # A few programs go through the batch for each tile, so that the sums over it need a few copies only.
        parts = min(B, triton.cdiv(2 * multiprocessors(q.device), tiles * H))
        sides = [constants["T" + a] + constants["K" + a] + constants["S" + a] - 2 for a in "YX"]
        room = constants["KZ"] * sides[0] * sides[1]
        pairs = torch.empty((parts, H, tiles, TILE, room), dtype=torch.float32, device=q.device)
    per_part = triton.cdiv(B, parts)
    parts = triton.cdiv(B, per_part)
    strides = [x.stride()[:5] for x in (q, k, v, out, grad, dq, dk, dv)]
    with device_of(q):
        kernels_backward.query_grad_kernel[(tiles, H, parts)](
            q, k, v, table, out, grad, lse, delta, dq, pairs,
            *(s for x in strides[:6] for s in x), B, H, Z, Y, X, tiles_y, tiles_x, per_part, scale,
            PAIRS=room, **_tuned("neighborhood_grad_q", q, constants),
        )  # fmt: skip
    # Two tiles of sums, and what a biased volume computes indices with, must fit the registers.
    warps = 8 if max(constants["BD"], constants["BE"]) > 32 else None
    keys = TILE // 2 if constants["KZ"] > 1 and bias is not None else None
    with device_of(q):
        kernels_backward.key_grad_kernel[(tiles, H, B)](
            q, k, v, table, grad, lse, delta, dk, dv,
            *(s for i in (0, 1, 2, 4, 6, 7) for s in strides[i]), H, Z, Y, X, tiles_y, tiles_x, scale,
            **_tuned("neighborhood_grad_kv", q, constants, warps=warps, keys=keys),
        )  # fmt: skip
    if bias is not None:
        geometry = {n: constants[n] for n in (*WINDOW, "TY", "TX")}
        entries = 64 if interpreting() else 4  # few programs for the interpreter, many for a GPU
        with device_of(q):
            kernels_backward.bias_grad_kernel[(triton.cdiv(bias[0].numel(), entries), H)](
                pairs,
                dbias,
                parts,
                H,
                Z,
                Y,
                X,
                tiles_y,
                tiles_x,
                tiles,
                PAIRS=room,
                BR=entries,
                BN=128,
                num_warps=4,
                **geometry,
            )
    return dq, dk, dv, dbias.to(q.dtype)


@_backward_op.register_fake
def _(grad, q, k, v, bias, out, lse, window, scale):  # type: ignore[no-untyped-def]
    return *(x.new_empty(x.shape) for x in (q, k, v)), q.new_empty((0,) if bias is None else bias.shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, bias, ctx.window, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, bias, *output)
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, _):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 6
    bias = ctx.saved_tensors[3]
    dq, dk, dv, dbias = _backward_op(grad, *ctx.saved_tensors, ctx.window, ctx.scale)
    return dq, dk, dv, None if bias is None else dbias, None, None


_op.register_autograd(_autograd, setup_context=_setup)


def can_run(q: Tensor, k: Tensor, v: Tensor, **_: object) -> str | None:
    """Why the kernels cannot serve a call, or None."""
    if max(q.shape[-1], v.shape[-1]) > MAX_DIM:
        return f"head_dim {max(q.shape[-1], v.shape[-1])} exceeds {MAX_DIM}, the widest that a program holds"
    return None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
    stride: tuple[int, ...],
    causal: tuple[bool, ...],
    bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Missing axes come first and have length 1."""
    missing = 6 - q.dim()
    ones = (1,) * missing
    if missing:
        q, k, v = (x.unflatten(0, (-1, *ones)) for x in (q, k, v))
        bias = None if bias is None else bias.unflatten(0, (-1, *ones))
    window = [int(x) for axes in (kernel_size, dilation, stride) for x in (*ones, *axes)]
    window += [int(x) for x in ((False,) * missing + causal)]
    out = _op(q, k, v, bias, window, scale)[0]
    return out.flatten(0, missing) if missing else out


def halo_can_run(q: Tensor, k: Tensor, v: Tensor, *, block_size: int, halo_size: int, **_: object) -> str | None:
    """Why the kernels cannot serve a call of halo_attention, or None."""
    if block_size + 2 * halo_size > MAX_WINDOW:
        return f"the window of {block_size + 2 * halo_size} positions exceeds {MAX_WINDOW}, the widest row of logits"
    return can_run(q, k, v)


def build_cases() -> dict[str, BuildCase]:
    """NAT's first stage with bias, DiNAT's dilation on a wider head, volumes, and a causal line."""

    def qkv(*shape: int) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(*shape, dtype=torch.bfloat16) for _ in range(3))

    bias = torch.zeros(2, 13, 13, dtype=torch.bfloat16)
    tables = {name: torch.zeros(27, 32, dtype=torch.bfloat16) for name in ("rel_height", "rel_width")}
    return {
        "nat-7x7-d32": BuildCase(
            neighborhood_attention,
            qkv(4, 56, 56, 2, 32),
            {"kernel_size": 7, "bias": bias},
            no_tensor_cores=("bias_grad_kernel",),
            narrow_loads=("bias_grad_kernel",),
        ),
        "dinat-7x7-d64": BuildCase(neighborhood_attention, qkv(1, 56, 56, 2, 64), {"kernel_size": 7, "dilation": 4}),
        "wide-d128": BuildCase(neighborhood_attention, qkv(1, 64, 64, 2, 128), {"kernel_size": 13}),
        "volume-3x5x5-d32": BuildCase(
            neighborhood_attention,
            qkv(1, 8, 28, 28, 2, 32),
            {"kernel_size": (3, 5, 5), "bias": torch.zeros(2, 5, 9, 9, dtype=torch.bfloat16)},
            no_tensor_cores=("bias_grad_kernel",),
            narrow_loads=("bias_grad_kernel",),
        ),
        "volume-3x3x3-d64": BuildCase(neighborhood_attention, qkv(1, 16, 32, 32, 2, 64), {"kernel_size": 3}),
        "halo-8-3-d32": BuildCase(halo_attention, qkv(1, 32, 32, 2, 32), {"block_size": 8, "halo_size": 3, **tables}),
        "halo-8-3-d64": BuildCase(halo_attention, qkv(1, 32, 32, 2, 64), {"block_size": 8, "halo_size": 3}),
        "causal-line-d32": BuildCase(neighborhood_attention, qkv(1, 4096, 2, 32), {"kernel_size": 13, "causal": True}),
    }
