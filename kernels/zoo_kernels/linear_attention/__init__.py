"""Attention at a cost linear in the tokens: kernel feature maps, and the published forms built on them.

* :func:`linear_attention`: elu+1 and ReLU maps (Katharopoulos et al., arXiv:2006.16236), exp, the double softmax of
  Efficient Attention (Shen et al., arXiv:1812.01243), none; causal with decay (Lightning Attention-2,
  arXiv:2401.04658); the causal double softmax of Latte (Dolga et al., arXiv:2402.17512).
* :func:`inline_attention`: injective linear attention (Han et al., arXiv:2412.06590).
* :func:`mala_attention`: magnitude-aware linear attention (Fan et al., arXiv:2507.00698).
* :func:`taylor_attention`: TaylorShift (Nauen et al., arXiv:2403.02920), direct and linear form.
"""

from __future__ import annotations

import torch

from zoo_kernels.dispatch import Operator

_BACKENDS = ("reference", "eager", "triton")
OPERATOR = Operator("linear_attention", _BACKENDS, autocast=True)
INLINE = Operator("linear_attention", _BACKENDS, function="inline", autocast=True)
MALA = Operator("linear_attention", _BACKENDS, function="mala", autocast=True)
TAYLOR = Operator("linear_attention", _BACKENDS, function="taylor", autocast=True)

FEATURE_MAPS = ("elu+1", "relu", "exp", "softmax", "identity")

__all__ = [
    "FEATURE_MAPS",
    "INLINE",
    "MALA",
    "OPERATOR",
    "TAYLOR",
    "inline_attention",
    "linear_attention",
    "mala_attention",
    "taylor_attention",
]


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    feature_map: str = "elu+1",
    causal: bool = False,
    decay: torch.Tensor | None = None,
    normalize: bool | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> torch.Tensor:
    """out_i = sum_j w_ij v_j / (sum_j w_ij + eps), w_ij = phi(q_i) . phi(k_j), through the state phi(k)^T v.

    Args:
        q: [B, h, N, d], any floating dtype.
        k: [B, h, M, d].
        v: [B, h, M, dv].
        feature_map: phi, elementwise: "elu+1", "relu", "exp" (computed relative to the maximum: it cannot overflow,
            and eps does not enter), "identity"; or "softmax": q over its channels, k over the tokens (causal: for each
            query over the tokens so far, as in Latte), no denominator.
        causal: whether only tokens j <= i count (M must be N).
        decay: [h] in (0, 1], causal only: w_ij is multiplied by decay^(i-j); not with "exp" and "softmax".
        normalize: whether to divide by the sum of the weights. None: as the map asks, which is no for "identity"
            (its weights may add up to zero) and yes otherwise. "exp" and "softmax" are always normalised.
        eps: added to the denominator, >= 0.
        backend: "auto", "reference", "eager" or "triton".

    Returns:
        [B, h, N, dv], in v's dtype.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is accepted.
        BackendError: a backend asked for by name that cannot serve the call.
    """
    _check(q, k, v)
    if feature_map not in FEATURE_MAPS:
        raise ValueError(f"feature_map={feature_map!r}: accepted are {', '.join(map(repr, FEATURE_MAPS))}")
    if normalize is None:
        normalize = feature_map != "identity"
    if feature_map == "identity" and normalize:
        raise ValueError(
            "normalize=True with feature_map='identity': its weights may add up to zero; use "
            "inline_attention for the normalised form"
        )
    if feature_map in ("exp", "softmax") and not normalize:
        raise ValueError(f"normalize=False with feature_map={feature_map!r}: this map is always normalised")
    if eps < 0:
        raise ValueError(f"eps={eps}: it must be >= 0")
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(f"causal=True: q has {q.shape[2]} tokens and k {k.shape[2]}, they must be the same")
    if decay is not None:
        if not causal or feature_map in ("exp", "softmax"):
            raise ValueError(
                f"decay is given with causal={causal} and feature_map={feature_map!r}: it needs "
                "causal=True and a map other than 'exp' and 'softmax'"
            )
        if tuple(decay.shape) != (q.shape[1],):
            raise ValueError(f"decay is {tuple(decay.shape)}: it must be [heads] = ({q.shape[1]},)")
        _check_same("decay", decay, q)
    return OPERATOR(
        q,
        k,
        v,
        feature_map=feature_map,
        causal=causal,
        decay=decay,
        normalize=normalize,
        eps=float(eps),
        backend=backend,
    )


def inline_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None, backend: str = "auto"
) -> torch.Tensor:
    """out = scale/M * q (k^T v) + (1 - scale * q . mean(k)) mean(v): weights made to add up to one by subtraction.

    Args:
        q: [B, h, N, d], any floating dtype; a feature map other than the identity is the caller's to apply.
        k: [B, h, M, d].
        v: [B, h, M, dv].
        scale: d ** -0.5 if None.
        backend: "auto", "reference", "eager" or "triton".

    Returns:
        [B, h, N, dv], in v's dtype.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is accepted.
    """
    _check(q, k, v)
    return INLINE(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else float(scale), backend=backend)


def mala_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    sin: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> torch.Tensor:
    """out = (1 + 1/z) * scale/M * q' (k'^T v) - z mean(v), with z = scale * q . mean(k).

    q and k pass through elu+1; z is of these, and q', k' are these rotated: channels (2i, 2i+1) of token n by the
    angle whose sine and cosine are sin[n, 2i], cos[n, 2i] (both entries of a pair alike).

    Args:
        q, k: [B, h, N, d], any floating dtype, d even where they are rotated.
        v: [B, h, N, dv].
        sin, cos: [N, d], both or neither; in q's dtype or float32. The triton backend gives them no gradient.
        scale: d ** -0.5 if None.
        eps: added to z in the division, >= 0.
        backend: "auto", "reference", "eager" or "triton".

    Returns:
        [B, h, N, dv], in v's dtype.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is accepted.
    """
    _check(q, k, v)
    if k.shape[2] != q.shape[2]:
        raise ValueError(f"q has {q.shape[2]} tokens and k {k.shape[2]}: they must be the same")
    if (sin is None) != (cos is None):
        raise ValueError("sin and cos: give both or neither")
    if sin is not None and cos is not None:
        expected = tuple(q.shape[2:])
        if expected[1] % 2:
            raise ValueError(f"head_dim {expected[1]} of q: the rotation takes pairs of channels, it must be even")
        for name, table in (("sin", sin), ("cos", cos)):
            if tuple(table.shape) != expected:
                raise ValueError(f"{name} is {tuple(table.shape)}: it must be [tokens, head_dim] = {expected}")
            if table.dtype not in (q.dtype, torch.float32) or table.device != q.device:
                raise TypeError(
                    f"{name} is {table.dtype} on {table.device}: it must be q's {q.dtype} or float32, on {q.device}"
                )
    if eps < 0:
        raise ValueError(f"eps={eps}: it must be >= 0")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return MALA(q, k, v, sin=sin, cos=cos, scale=scale, eps=float(eps), backend=backend)


def taylor_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    temperature: torch.Tensor | None = None,
    coefficients: tuple[float, float, float] = (0.5, 1.0, 1.0),
    normalize_input: bool = True,
    scale_output: bool = False,
    form: str = "auto",
    backend: str = "auto",
) -> torch.Tensor:
    """Attention with the weights a x^2 + b x + c of x = q . k, divided by their sum.

    Args:
        q: [B, h, N, d], any floating dtype.
        k: [B, h, M, d].
        v: [B, h, M, dv].
        temperature: [h], multiplies q after its normalisation, or None.
        coefficients: (a, b, c); the default is the second-order Taylor polynomial of exp, which is positive. With
            others the weights may add up to zero, which is the caller's to avoid.
        normalize_input: whether q and k are divided by their lengths first.
        scale_output: whether the result is multiplied by sqrt(M / d), as the models do for trained-from-scratch use.
        form: "direct" (O(N M d)), "linear" (O((N + M) d^2 dv)), or "auto": linear where M > d^2 + d + 1.
        backend: "auto", "reference", "eager" or "triton".

    Returns:
        [B, h, N, dv], in v's dtype.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is accepted.
    """
    _check(q, k, v)
    if form not in ("auto", "direct", "linear"):
        raise ValueError(f"form={form!r}: accepted are 'auto', 'direct', 'linear'")
    if len(coefficients) != 3:
        raise ValueError(f"coefficients={coefficients!r}: three numbers a, b, c of a x^2 + b x + c are accepted")
    if temperature is not None:
        if tuple(temperature.shape) != (q.shape[1],):
            raise ValueError(f"temperature is {tuple(temperature.shape)}: it must be [heads] = ({q.shape[1]},)")
        _check_same("temperature", temperature, q)
    d, tokens = q.shape[-1], k.shape[2]
    return TAYLOR(
        q,
        k,
        v,
        temperature=temperature,
        coefficients=tuple(float(x) for x in coefficients),
        normalize_input=normalize_input,
        output_scale=(tokens / d) ** 0.5 if scale_output else 1.0,
        linear=tokens > d * d + d + 1 if form == "auto" else form == "linear",
        backend=backend,
    )


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(
                f"{name} has {x.dim()} dimensions {tuple(x.shape)}: accepted is [B, heads, tokens, head_dim]"
            )
    if not q.is_floating_point():
        raise TypeError(f"q is {q.dtype}: accepted are floating dtypes")
    _check_same("k", k, q)
    _check_same("v", v, q)
    if k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k is {tuple(k.shape)}: batch, heads and head_dim must be those of q, {tuple(q.shape)}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v is {tuple(v.shape)}: batch, heads and tokens must be those of k, {tuple(k.shape)}")
    if 0 in q.shape[1:] or 0 in v.shape[1:]:
        raise ValueError(f"q is {tuple(q.shape)}, v {tuple(v.shape)}: only the batch may be empty")


def _check_same(name: str, tensor: torch.Tensor, q: torch.Tensor) -> None:
    if tensor.dtype != q.dtype or tensor.device != q.device:
        raise TypeError(f"{name} is {tensor.dtype} on {tensor.device}: it must be as q, {q.dtype} on {q.device}")
