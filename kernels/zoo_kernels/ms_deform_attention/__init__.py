"""Multi-scale deformable attention: every query reads a few bilinear samples of several maps.

``ms_deform_attention`` is the classic signature (locations and weights in), ``ms_deform_attention_fused`` takes the raw
outputs of the two linears (offsets and logits) with the reference points, and fuses softmax and location arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from zoo_kernels.dispatch import Operator

__all__ = ["FUSED", "OPERATOR", "ms_deform_attention", "ms_deform_attention_fused"]

OPERATOR = Operator("ms_deform_attention", ("reference", "eager", "triton"))
FUSED = Operator("ms_deform_attention", ("reference", "eager", "triton"), function="forward_fused")

Shapes = Sequence[Sequence[int]] | Tensor


def ms_deform_attention(
    value: Tensor,
    spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    points: Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Weighted sum of bilinear samples of multi-scale maps (Deformable DETR, arXiv:2010.04159, eq. 3).

    ``out[b,q,h] = sum_{l,p} weight[b,q,h,l,p] * bilinear(value_l[b,:,h], location[b,q,h,l,p])``. A location is
    ``(x, y)`` in [0, 1] over the whole level; pixel i is centred at ``(i + 0.5) / W``; outside the map counts as zero.

    Args:
        value: ``[B, S, h, d]``, the levels one after the other, each in raster order; S is the sum of H*W.
        spatial_shapes: ``(H, W)`` of each level: a sequence of pairs of ints, or an integer tensor ``[L, 2]`` (a tensor
            on a GPU costs a host synchronisation; under torch.compile and torch.export give ints).
        sampling_locations: ``[B, Q, h, L, P, 2]``; with ``points`` ``[B, Q, h, T, 2]``.
        attention_weights: ``[B, Q, h, L, P]``; with ``points`` ``[B, Q, h, T]``. Used as they are (not normalised).
        points: number of points of each level where levels differ; T is their sum.
        backend: see :mod:`zoo_kernels.dispatch`.

    Returns:
        ``[B, Q, h*d]`` in the dtype of ``value``, heads outermost. ``value`` may be of lower precision than the
        locations and weights.

    Raises:
        ValueError: an argument's shape or dtype does not fit; the message names it and what is accepted.
        BackendError: the backend asked for by name cannot serve the call.
    """
    shapes = _shapes(spatial_shapes)
    counts = _check_samples(value, shapes, "sampling_locations", sampling_locations, points)
    _check_weights("attention_weights", attention_weights, "sampling_locations", sampling_locations)
    b, q, h = sampling_locations.shape[:3]
    t = sum(counts)
    return OPERATOR(
        value,
        shapes,
        sampling_locations.reshape(b, q, h, t, 2),
        attention_weights.reshape(b, q, h, t),
        counts,
        backend=backend,
    )


def ms_deform_attention_fused(
    value: Tensor,
    spatial_shapes: Shapes,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    *,
    points: Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """The same from raw offsets and logits: softmax over all L*P samples and the location arithmetic are inside.

    Locations are ``reference + offset / (W_l, H_l)`` for 2-number references (a point) and
    ``reference_xy + offset / P_l * reference_wh / 2`` for 4-number ones (a box, cx cy w h); arXiv:2010.04159, sec. 4.

    Args:
        value: ``[B, S, h, d]``.
        spatial_shapes: as in :func:`ms_deform_attention`.
        reference_points: ``[B, Q, L, 2]`` or ``[B, Q, L, 4]`` in [0, 1]; L may be 1 for the same in every level.
        offsets: ``[B, Q, h, L, P, 2]``; with ``points`` ``[B, Q, h, T, 2]``.
        logits: ``[B, Q, h, L, P]``; with ``points`` ``[B, Q, h, T]``.
        points: number of points of each level where levels differ; T is their sum.
        backend: see :mod:`zoo_kernels.dispatch`.

    Returns:
        ``[B, Q, h*d]`` in the dtype of ``value``.

    Raises:
        ValueError: an argument's shape or dtype does not fit; the message names it and what is accepted.
        BackendError: the backend asked for by name cannot serve the call.
    """
    shapes = _shapes(spatial_shapes)
    counts = _check_samples(value, shapes, "offsets", offsets, points)
    _check_weights("logits", logits, "offsets", offsets)
    b, q, h = offsets.shape[:3]
    levels, t = len(counts), sum(counts)
    if reference_points.ndim != 4 or reference_points.shape[-1] not in (2, 4):
        raise ValueError(
            f"reference_points has shape {tuple(reference_points.shape)}; accepted are [B, Q, L, 2] (points) and "
            "[B, Q, L, 4] (boxes cx cy w h)"
        )
    _check_float("reference_points", reference_points, value)
    if reference_points.shape[:2] != (b, q) or reference_points.shape[2] not in (1, levels):
        raise ValueError(
            f"reference_points has shape {tuple(reference_points.shape)}; its first three sizes must be B={b}, Q={q} "
            f"and L={levels} levels (or 1 for the same reference in every level)"
        )
    return FUSED(
        value,
        shapes,
        reference_points.expand(b, q, levels, reference_points.shape[-1]),
        offsets.reshape(b, q, h, t, 2),
        logits.reshape(b, q, h, t),
        counts,
        backend=backend,
    )


def _shapes(spatial_shapes: Shapes) -> tuple[tuple[int, int], ...]:
    """The levels as pairs of ints."""
    if isinstance(spatial_shapes, Tensor):
        if torch.compiler.is_compiling():
            raise ValueError(
                "spatial_shapes is a tensor; under torch.compile and torch.export give (H, W) pairs of ints, which "
                "cost no host synchronisation"
            )
        if spatial_shapes.is_floating_point() or spatial_shapes.ndim != 2:
            raise ValueError(
                f"spatial_shapes is a {spatial_shapes.dtype} tensor of shape {tuple(spatial_shapes.shape)}; accepted "
                "is an integer tensor [L, 2]"
            )
        spatial_shapes = spatial_shapes.tolist()
    pairs = cast("Sequence[Sequence[int]]", spatial_shapes)
    shapes = tuple(tuple(s) for s in pairs)
    if not shapes or any(len(s) != 2 or min(s) < 1 for s in shapes):
        raise ValueError(f"spatial_shapes={shapes!r}: accepted are one or more (H, W) pairs of at least 1")
    return cast("tuple[tuple[int, int], ...]", shapes)


def _check_float(name: str, t: Tensor, value: Tensor) -> None:
    if not t.is_floating_point():
        raise ValueError(f"{name} has dtype {t.dtype}; accepted are floating types")
    if t.device != value.device:
        raise ValueError(f"{name} is on {t.device}, value on {value.device}; both must be on one device")


def _check_samples(
    value: Tensor, shapes: tuple[tuple[int, int], ...], name: str, samples: Tensor, points: Sequence[int] | None
) -> tuple[int, ...]:
    """Check value against the levels and the samples against both; return the number of points of each level."""
    _check_float("value", value, value)
    _check_float(name, samples, value)
    if value.ndim != 4:
        raise ValueError(f"value has shape {tuple(value.shape)}; accepted is [B, S, heads, head_dim]")
    total, levels = sum(h * w for h, w in shapes), len(shapes)
    if value.shape[1] != total:
        raise ValueError(
            f"value has S={value.shape[1]} positions (shape {tuple(value.shape)}), but spatial_shapes={shapes} sum to "
            f"{total}"
        )
    if value.shape[2] < 1 or value.shape[3] < 1:
        raise ValueError(f"value has shape {tuple(value.shape)}; heads and head_dim must be at least 1")
    layout = "[B, Q, heads, L, P, 2]" if points is None else "[B, Q, heads, T, 2] when points is given"
    if samples.ndim != (6 if points is None else 5) or samples.shape[-1] != 2:
        raise ValueError(f"{name} has shape {tuple(samples.shape)}; accepted is {layout}")
    if points is None:
        if samples.shape[3] != levels:
            raise ValueError(f"{name} has {samples.shape[3]} levels, spatial_shapes has {levels}; they must agree")
        counts = (samples.shape[4],) * levels
    else:
        counts = tuple(points)
        if len(counts) != levels:
            raise ValueError(f"points={counts} has {len(counts)} levels, spatial_shapes has {levels}; they must agree")
        if samples.shape[3] != sum(counts):
            raise ValueError(f"{name} has {samples.shape[3]} samples a head, points={counts} sum to {sum(counts)}")
    if min(counts) < 1:
        raise ValueError(f"{name}: the numbers of points are {counts}; every level needs at least 1")
    if samples.shape[0] != value.shape[0] or samples.shape[2] != value.shape[2]:
        raise ValueError(
            f"{name} has batch {samples.shape[0]} and {samples.shape[2]} heads, value has batch {value.shape[0]} and "
            f"{value.shape[2]} heads; they must agree"
        )
    return counts


def _check_weights(name: str, weights: Tensor, samples_name: str, samples: Tensor) -> None:
    _check_float(name, weights, samples)
    if weights.shape != samples.shape[:-1]:
        raise ValueError(
            f"{name} has shape {tuple(weights.shape)}; it must be that of {samples_name} less the last dimension, "
            f"{tuple(samples.shape[:-1])}"
        )
