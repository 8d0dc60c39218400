"""Attention of each position to its spatial neighbourhood, in one, two or three dimensions.

NAT: Hassani et al., "Neighborhood Attention Transformer", arXiv:2204.07143; DiNAT (dilation): arXiv:2209.15001;
strided windows: "Generalized Neighborhood Attention", arXiv:2504.16922; HaloNet (blocks with a halo): Vaswani et al.,
"Scaling Local Self-Attention for Parameter Efficient Visual Backbones", arXiv:2103.12731.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zoo_kernels.dispatch import Operator

_BACKENDS = ("reference", "eager", "triton")
OPERATOR = Operator("neighborhood_attention", _BACKENDS, autocast=True)
HALO = Operator("neighborhood_attention", _BACKENDS, function="halo", autocast=True)

__all__ = ["HALO", "OPERATOR", "halo_attention", "neighborhood_attention"]


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Softmax attention of every position to the ``kernel_size`` nearest positions of its dilation group.

    At a border the window moves inside, so that every query sees exactly ``kernel_size`` keys on each axis; a causal
    axis is cut instead and sees the last ``kernel_size`` positions up to the query's own. Positions that differ by a
    multiple of ``dilation`` form a group and see only each other. ``stride`` neighbouring queries share one window.

    Args:
        q, k: [B, *spatial, h, d] with one, two or three spatial axes; all of one floating dtype.
        v: [B, *spatial, h, dv].
        kernel_size: window on each axis, >= 1 (an even one reaches k/2 back and k/2 - 1 ahead).
        dilation: >= 1 on each axis; kernel_size * dilation must not exceed the map.
        stride: 1..kernel_size on each axis.
        causal: for each axis, whether later positions are hidden.
        bias: [h, 2*k0-1, (2*k1-1, (2*k2-1))], added to the logits; entry r - p + k - 1 on each axis for key rank r
            and query rank p (ranks within the dilation group), or None.
        scale: factor of the logits, d ** -0.5 if None.
        backend: "auto", "reference", "eager" or "triton".

    Returns:
        [B, *spatial, h, dv], in q's dtype.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is accepted.
        BackendError: a backend asked for by name that cannot serve the call.
    """
    if q.dim() not in (4, 5, 6):
        raise ValueError(
            f"q has {q.dim()} dimensions {tuple(q.shape)}: accepted are [B, *spatial, heads, head_dim] with one to "
            "three spatial axes"
        )
    _check_qkv(q, k, v)
    spatial = tuple(q.shape[1:-2])
    if k.shape[:-1] != q.shape[:-1]:
        raise ValueError(f"k is {tuple(k.shape)} and q {tuple(q.shape)}: batch, map and heads must be the same")
    dims = len(spatial)
    kernel_size = _per_axis("kernel_size", kernel_size, dims)
    dilation = _per_axis("dilation", dilation, dims)
    stride = _per_axis("stride", stride, dims)
    causal = _flags("causal", causal, dims)
    for axis in range(dims):
        size, k_a, d_a = spatial[axis], kernel_size[axis], dilation[axis]
        if stride[axis] > k_a:
            raise ValueError(f"stride={stride}: on axis {axis} it exceeds kernel_size={k_a}")
        if k_a * d_a > size:
            raise ValueError(
                f"kernel_size={k_a} * dilation={d_a} = {k_a * d_a} exceeds the map's {size} positions on axis {axis}"
            )
    if bias is not None:
        expected = (q.shape[-2], *(2 * k_a - 1 for k_a in kernel_size))
        if tuple(bias.shape) != expected:
            raise ValueError(
                f"bias is {tuple(bias.shape)}: for {q.shape[-2]} heads and kernel_size={kernel_size} it must be "
                f"{expected}"
            )
        _check_same("bias", bias, q)
    return OPERATOR(
        q,
        k,
        v,
        kernel_size=kernel_size,
        dilation=dilation,
        stride=stride,
        causal=causal,
        bias=bias,
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        backend=backend,
    )


def halo_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    block_size: int,
    halo_size: int,
    rel_height: torch.Tensor | None = None,
    rel_width: torch.Tensor | None = None,
    scale: float | None = None,
    scale_position: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """HaloNet's blocked local attention: each block of queries attends to its block and a halo around it.

    Positions outside the map are keys and values of zero that take part in the softmax, as the paper's zero padding
    has it. The optional relative positions are content-based: logit += q . rel_height[Y-y+win-1] +
    q . rel_width[X-x+win-1], with win = block_size + 2 * halo_size and (Y, X) counted from the halo's corner.

    Args:
        q: [B, H/r, W/r, h, d]; r > 1 where queries were downsampled by a whole number that divides block_size.
        k: [B, H, W, h, d]; H and W multiples of block_size.
        v: [B, H, W, h, dv].
        block_size: side of a block on the key map, >= 1.
        halo_size: positions around the block, >= 0.
        rel_height, rel_width: [2 * win - 1, d], shared by the heads, or None.
        scale: factor of q . k, d ** -0.5 if None.
        scale_position: whether the relative logits are multiplied by ``scale`` too.
        backend: "auto", "reference", "eager" or "triton".

    Returns:
        [B, H/r, W/r, h, dv], in q's dtype.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is accepted.
    """
    if q.dim() != 5:
        raise ValueError(f"q has {q.dim()} dimensions {tuple(q.shape)}: accepted is [B, H, W, heads, head_dim]")
    _check_qkv(q, k, v)
    if block_size < 1 or halo_size < 0:
        raise ValueError(
            f"block_size={block_size}, halo_size={halo_size}: accepted are block_size >= 1, halo_size >= 0"
        )
    if (k.shape[0], *k.shape[3:]) != (q.shape[0], *q.shape[3:]):
        raise ValueError(f"k is {tuple(k.shape)} and q {tuple(q.shape)}: batch, heads and head_dim must be the same")
    height, width = k.shape[1:3]
    if height % block_size or width % block_size:
        raise ValueError(f"k's map {height}x{width} is no multiple of block_size={block_size}")
    ratio = height // q.shape[1] if q.shape[1] else 0
    if ratio < 1 or (q.shape[1] * ratio, q.shape[2] * ratio) != (height, width) or block_size % ratio:
        raise ValueError(
            f"q's map {q.shape[1]}x{q.shape[2]} must be k's map {height}x{width} divided by a whole number that "
            f"divides block_size={block_size}"
        )
    for name, table in (("rel_height", rel_height), ("rel_width", rel_width)):
        if table is not None:
            expected = (2 * (block_size + 2 * halo_size) - 1, q.shape[-1])
            if tuple(table.shape) != expected:
                raise ValueError(f"{name} is {tuple(table.shape)}: it must be [2 * win - 1, head_dim] = {expected}")
            _check_same(name, table, q)
    return HALO(
        q,
        k,
        v,
        block_size=block_size,
        halo_size=halo_size,
        rel_height=rel_height,
        rel_width=rel_width,
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        scale_position=scale_position,
        backend=backend,
    )


def _check_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    if not q.is_floating_point():
        raise TypeError(f"q is {q.dtype}: accepted are floating dtypes")
    _check_same("k", k, q)
    _check_same("v", v, q)
    if k.dim() != q.dim() or k.shape[-1] != q.shape[-1]:
        raise ValueError(f"k is {tuple(k.shape)}: it must have q's rank and head_dim, q is {tuple(q.shape)}")
    if v.shape[:-1] != k.shape[:-1]:
        raise ValueError(f"v is {tuple(v.shape)}: all but the last size must be k's, k is {tuple(k.shape)}")
    if 0 in q.shape[1:] or 0 in v.shape[1:]:
        raise ValueError(f"q is {tuple(q.shape)}, v {tuple(v.shape)}: only the batch may be empty")


def _check_same(name: str, tensor: torch.Tensor, q: torch.Tensor) -> None:
    # Under autocast the operator brings all inputs to one dtype.
    if (tensor.dtype != q.dtype and not OPERATOR.autocasts(q)) or tensor.device != q.device:
        raise TypeError(f"{name} is {tensor.dtype} on {tensor.device}: it must be as q, {q.dtype} on {q.device}")


def _per_axis(name: str, value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims or any(isinstance(x, bool) or not isinstance(x, int) or x < 1 for x in values):
        raise ValueError(f"{name}={value!r}: accepted is an integer >= 1, or {dims} of them for this map")
    return values


def _flags(name: str, value: bool | Sequence[bool], dims: int) -> tuple[bool, ...]:
    values = (value,) * dims if isinstance(value, bool) else tuple(value)
    if len(values) != dims or any(not isinstance(x, bool) for x in values):
        raise ValueError(f"{name}={value!r}: accepted is True or False, or {dims} of them for this map")
    return values
