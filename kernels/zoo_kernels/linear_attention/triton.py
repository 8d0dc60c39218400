"""The Triton backend: what each form passes to the kernels, and the operators registered with torch.library."""

from __future__ import annotations

from functools import partial

import torch
import triton

from zoo_kernels import tuning
from zoo_kernels.dispatch import interpreting, multiprocessors
from zoo_kernels.linear_attention import (
    inline_attention,
    kernels,
    linear_attention,
    mala_attention,
    taylor_attention,
    triton_causal,
)
from zoo_kernels.linear_attention.triton_taylor import taylor as taylor
from zoo_kernels.testing import BuildCase
from zoo_kernels.tiles import block, device_of, unit_stride

Tensor = torch.Tensor

#: Widest head that a program keeps as a state in registers.
MAX_DIM = 128
#: Widest head of the linear Taylor form, whose state has head_dim^2 rows.
MAX_TAYLOR_DIM = 64

NORMALISED, PLAIN, INLINE, MALA, SOFTMAX, EXP = range(6)  # the ``kind`` of the registered operators
FORM = {NORMALISED: 0, PLAIN: 0, INLINE: 1, MALA: 2, SOFTMAX: 3, EXP: 3}
MAPS = {"identity": 0, "elu+1": 1, "relu": 2}


def _tokens_first(b: int, h: int, n: int, d: int, like: Tensor) -> Tensor:
    """[b, h, n, d] lying in memory as [b, n, h, d], which is what the projection after it reads."""
    return torch.empty((b, n, h, d), dtype=like.dtype, device=like.device).transpose(1, 2)


def _constants(kernel: str, q: Tensor, k: Tensor, v: Tensor, kind: int, fmap: int, rotate: bool) -> dict[str, object]:
    """``kernel``: the name in the tuning tables."""
    d, e = k.shape[-1], v.shape[-1]
    bd, be = block(d), block(e)
    default = {
        "BN": 64 if max(bd, be) <= 64 else 32,
        "num_warps": 4 if max(bd, be) <= 32 else 8,
        "num_stages": 2,
    }
    exact = {"dim": bd, "value_dim": be, "form": FORM[kind], "rotate": int(rotate), "bytes": k.element_size()}
    near = {"queries": q.shape[2], "keys": k.shape[2], "heads": k.shape[0] * k.shape[1]}
    return {
        "D": d,
        "E": e,
        "BD": bd,
        "BE": be,
        "FORM": FORM[kind],
        "MAP": fmap,
        "ROTATE": rotate,
        "PRECISION": "ieee" if k.dtype == torch.float32 or interpreting() else "tf32",
        **tuning.config(kernel, k.device, default, exact=exact, near=near),
    }


def _splits(tokens: int, block: int, bh: int, device: torch.device) -> tuple[int, int]:
    """How many programs share the tokens of one batch element and head, and how many tokens each takes.

    About two programs for each multiprocessor, and no fewer than four blocks a program, so that the parts stay small
    against the keys and values.
    """
    blocks = triton.cdiv(tokens, block)
    wanted = triton.cdiv(2 * multiprocessors(device), max(1, bh))
    per = max(min(4, blocks), triton.cdiv(blocks, wanted))
    return triton.cdiv(blocks, per), per * block


@torch.library.custom_op("zoo_kernels::linear_attention", mutates_args=())
def _op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sin: Tensor | None,
    cos: Tensor | None,
    kind: int,
    fmap: int,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, and what the backward needs of the keys: state [B*h, BD, BE], z [B*h, BD], u [B*h, BE]."""
    (b, h, n, _), m, e = q.shape, k.shape[2], v.shape[-1]
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    constants = _constants("linear_forward", q, k, v, kind, fmap, sin is not None)
    bd, be, bn = (int(constants[x]) for x in ("BD", "BE", "BN"))  # type: ignore[call-overload]
    sin, cos = (q if t is None else t.contiguous() for t in (sin, cos))
    splits, per = _splits(m, bn, b * h, q.device)

    def state(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=q.device)

    out, joined, z, u = _tokens_first(b, h, n, e, v), state(b * h, bd, be), state(b * h, bd), state(b * h, be)
    if b == 0:
        return out, joined, z, u
    part, keys, values = state(b * h, splits, bd, be), state(b * h, splits, bd), state(b * h, splits, be)
    top = state(b * h, splits, bd) if FORM[kind] == 3 else keys
    with device_of(q):
        kernels.state_kernel[(splits, b * h)](
            k, v, sin, cos, part, keys, values, top, *k.stride()[:3], *v.stride()[:3], h, m, per, **constants
        )
    with device_of(q):
        kernels.join_kernel[(b * h,)](
            part,
            keys,
            values,
            top,
            joined,
            z,
            u,
            splits,
            m,
            scale,
            BD=bd,
            BE=be,
            FORM=FORM[kind],
            num_warps=4,
        )
    with device_of(q):
        kernels.output_kernel[(triton.cdiv(n, bn), b * h)](
            q,
            sin,
            cos,
            joined,
            z,
            u,
            out,
            *q.stride()[:3],
            *out.stride()[:3],
            h,
            n,
            float(m),
            eps / m if kind == NORMALISED else eps,
            NORM=kind == NORMALISED,
            EXP=kind == EXP,
            **constants,
        )
    return out, joined, z, u


@_op.register_fake
def _(q, k, v, sin, cos, kind, fmap, scale, eps):  # type: ignore[no-untyped-def]
    b, h, n, d = q.shape
    bd, be = block(int(d)), block(int(v.shape[-1]))

    def state(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=q.device)

    return _tokens_first(b, h, n, v.shape[-1], v), state(b * h, bd, be), state(b * h, bd), state(b * h, be)


@torch.library.custom_op("zoo_kernels::linear_attention_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sin: Tensor | None,
    cos: Tensor | None,
    state: Tensor,
    z: Tensor,
    u: Tensor,
    kind: int,
    fmap: int,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv."""
    (b, h, n, d), m, e = q.shape, k.shape[2], v.shape[-1]
    q, k, v, grad = unit_stride(q), unit_stride(k), unit_stride(v), unit_stride(grad)
    dq, dk, dv = _tokens_first(b, h, n, d, q), _tokens_first(b, h, m, d, k), _tokens_first(b, h, m, e, v)
    if b == 0:
        return dq, dk, dv
    constants = _constants("linear_backward", q, k, v, kind, fmap, sin is not None)
    bd, be, bn = (int(constants[x]) for x in ("BD", "BE", "BN"))  # type: ignore[call-overload]
    sin, cos = (q if t is None else t.contiguous() for t in (sin, cos))
    splits, per = _splits(n, bn, b * h, q.device)
    parts = [torch.empty((b * h, splits, *s), dtype=torch.float32, device=q.device) for s in ((bd, be), (bd,), (be,))]
    with device_of(q):
        kernels.query_grad_kernel[(splits, b * h)](
            q,
            grad,
            sin,
            cos,
            state,
            z,
            u,
            dq,
            *parts,
            *q.stride()[:3],
            *grad.stride()[:3],
            *dq.stride()[:3],
            h,
            n,
            per,
            float(m) if kind == PLAIN else 1.0,
            eps / m if kind == NORMALISED else eps,
            NORM=kind == NORMALISED,
            EXP=kind == EXP,
            **constants,
        )
    dstate, dz, du = (p.sum(1) for p in parts)
    dvalue = du
    if kind == NORMALISED:
        dstate, dkey = dstate / m, dz / m
    elif kind == PLAIN:
        dkey = torch.zeros_like(dz)
    elif kind == INLINE:
        # S = s/M (K^T V - keys mean(v)^T): the second term sends its part to the key sums and to the mean value.
        dstate = dstate * (scale / m)
        dkey = -(dstate * u.unsqueeze(1)).sum(-1)
        dvalue = (du - (dstate * z.unsqueeze(-1)).sum(1)) / m
    elif kind == MALA:
        dstate, dkey, dvalue = dstate * (scale / m), dz * (scale / m), du / m
    else:
        # Through the softmax over the tokens: minus the weighted mean of its gradient, which is known from S and dS.
        dkey = -(dstate * state).sum(-1)
        if kind == EXP:
            dkey = dkey + dz
    factor = dstate.abs().amax((1, 2)).clamp(min=1e-30)
    dstate = dstate / factor[:, None, None]
    with device_of(q):
        kernels.key_grad_kernel[(triton.cdiv(m, bn), b * h)](
            k,
            v,
            sin,
            cos,
            z,
            dstate,
            factor,
            dkey,
            dvalue,
            dk,
            dv,
            *k.stride()[:3],
            *v.stride()[:3],
            *dk.stride()[:3],
            *dv.stride()[:3],
            h,
            m,
            **constants,
        )
    return dq, dk, dv


@_backward_op.register_fake
def _(grad, q, k, v, sin, cos, state, z, u, kind, fmap, scale, eps):  # type: ignore[no-untyped-def]
    return tuple(_tokens_first(*x.shape, x) for x in (q, k, v))


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, sin, cos, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, sin, cos, *output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, *_):  # type: ignore[no-untyped-def]
    nothing = [None] * 6
    if grad is None:
        return None, None, None, *nothing
    return *_backward_op(grad, *ctx.saved_tensors, *ctx.options), *nothing


_op.register_autograd(_autograd, setup_context=_setup)


def _too_wide(q: Tensor, v: Tensor) -> str | None:
    if max(q.shape[-1], v.shape[-1]) > MAX_DIM:
        return f"head_dim {max(q.shape[-1], v.shape[-1])} exceeds {MAX_DIM}, the widest state that a program holds"
    return None


def can_run(
    q: Tensor, k: Tensor, v: Tensor, *, feature_map: str = "elu+1", causal: bool = False, **_: object
) -> str | None:
    """Why the kernels cannot serve a call of linear_attention, or None."""
    if causal and feature_map in ("exp", "softmax"):
        return f"causal with the map {feature_map!r} needs the exponentials of every pair and channel, not a product"
    return _too_wide(q, v)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str,
    causal: bool,
    decay: Tensor | None,
    normalize: bool,
    eps: float,
) -> Tensor:
    """Every feature map; causal with the elementwise ones."""
    if causal:
        return triton_causal.causal(q, k, v, decay, MAPS[feature_map], normalize, eps)
    kind = {"softmax": SOFTMAX, "exp": EXP}.get(feature_map, NORMALISED if normalize else PLAIN)
    return _op(q, k, v, None, None, kind, MAPS.get(feature_map, 0), 1.0, eps)[0]


def inline_can_run(q: Tensor, k: Tensor, v: Tensor, **_: object) -> str | None:
    """Why the kernels cannot serve a call of inline_attention, or None."""
    return _too_wide(q, v)


def inline(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """InLine attention."""
    return _op(q, k, v, None, None, INLINE, 0, scale, 0.0)[0]


def mala_can_run(
    q: Tensor, k: Tensor, v: Tensor, *, sin: Tensor | None = None, cos: Tensor | None = None, **_: object
) -> str | None:
    """Why the kernels cannot serve a call of mala_attention, or None."""
    if any(t is not None and t.requires_grad for t in (sin, cos)):
        return "the rotation's sine and cosine require gradients, which the kernels do not give"
    return _too_wide(q, v)


def mala(
    q: Tensor, k: Tensor, v: Tensor, *, sin: Tensor | None, cos: Tensor | None, scale: float, eps: float
) -> Tensor:
    """Magnitude-aware linear attention."""
    return _op(q, k, v, sin, cos, MALA, MAPS["elu+1"], scale, eps)[0]


def taylor_can_run(q: Tensor, k: Tensor, v: Tensor, *, linear: bool = False, **_: object) -> str | None:
    """Why the kernels cannot serve a call of taylor_attention, or None."""
    widest = max(q.shape[-1], v.shape[-1])
    if linear and widest > MAX_TAYLOR_DIM:
        return f"head_dim {widest} exceeds {MAX_TAYLOR_DIM}, the widest whose second-order state the kernels make"
    return _too_wide(q, v)


def build_cases() -> dict[str, BuildCase]:
    """Segmentation at batch 1, and every form once."""

    def qkv(n: int, d: int) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(1, 2, n, d, dtype=torch.bfloat16) for _ in range(3))

    angle = torch.zeros(1024, 64)
    rotated = partial(mala_attention, sin=angle, cos=angle)
    scalar = ("join_kernel",)
    scan = ("scan_kernel",)
    decay = torch.full((2,), 0.99, dtype=torch.bfloat16)
    return {
        "elu-d64": BuildCase(linear_attention, qkv(16384, 64), no_tensor_cores=scalar),
        "exp-d32": BuildCase(linear_attention, qkv(4096, 32), {"feature_map": "exp"}, no_tensor_cores=scalar),
        "inline-d32": BuildCase(inline_attention, qkv(4096, 32), no_tensor_cores=scalar),
        "mala-d64": BuildCase(rotated, qkv(1024, 64), no_tensor_cores=scalar),
        "causal-d64": BuildCase(linear_attention, qkv(16384, 64), {"causal": True}, no_tensor_cores=scan),
        "causal-d128": BuildCase(linear_attention, qkv(4096, 128), {"causal": True}, no_tensor_cores=scan),
        "causal-decay-d32": BuildCase(
            linear_attention,
            qkv(4096, 32),
            {"feature_map": "identity", "causal": True, "decay": decay},
            no_tensor_cores=scan,
        ),
        "taylor-direct-d32": BuildCase(
            taylor_attention, qkv(1024, 32), {"temperature": decay.clone(), "form": "direct"}
        ),
        "taylor-direct-d128": BuildCase(taylor_attention, qkv(1024, 128), {"form": "direct"}),
        "taylor-linear-d16": BuildCase(taylor_attention, qkv(16384, 16), {"temperature": decay.clone()}),
        "taylor-linear-d64": BuildCase(taylor_attention, qkv(16384, 64)),
    }
