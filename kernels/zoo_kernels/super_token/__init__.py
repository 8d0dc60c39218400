"""Super tokens: the sparse association of pixels with a coarse grid of tokens, and the way back.

``super_token`` makes the tokens and the association, ``back_project`` maps tokens (after whatever mixes them) to the
pixels by the same association. Both see 3x3 neighbourhoods only, so their cost is linear in the pixels.
"""

from __future__ import annotations

from torch import Tensor

from zoo_kernels.dispatch import Operator

__all__ = ["BACK_PROJECT", "OPERATOR", "back_project", "super_token"]

OPERATOR = Operator("super_token", ("reference", "eager", "triton"), autocast=True)
BACK_PROJECT = Operator("super_token", ("reference", "eager", "triton"), function="back_project", autocast=True)


def super_token(
    x: Tensor,
    *,
    cell: int | tuple[int, int],
    iterations: int = 1,
    scale: float | None = None,
    eps: float = 1e-12,
    affinity_grad: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Super tokens of a map and the affinity of its pixels to them (STViT, arXiv:2211.11167, eq. 3-6).

    The map, padded right and bottom with zeros to whole cells, is a grid of ``hh x ww`` cells of ``ch x cw`` pixels;
    the tokens start as the cells' means. ``iterations`` times: ``A = softmax_k(scale <x_p, s_k>)`` over the nine tokens
    k of the 3x3 cells around pixel p, then ``s_k = sum_p A_pk x_p / (sum_p A_pk + eps)``. Tokens beyond the grid are
    zero and keep their share of A; what they would gather is dropped. Padding pixels count in means and sums.

    Args:
        x: ``[B, H, W, C]``.
        cell: ``(ch, cw)`` pixels a token, or one number for both.
        iterations: rounds of association and update, at least 1.
        scale: of the logits; ``C ** -0.5`` by default.
        eps: added to the sum of affinities.
        affinity_grad: whether gradients pass through the affinities; the authors hold them constant (False), and only
            the tokens' last update is differentiated.
        backend: see :mod:`zoo_kernels.dispatch`.

    Returns:
        tokens ``[B, hh, ww, C]`` and affinity ``[B, hh, ww, 9, ch*cw]``: of each cell, the share that its pixels (in
        raster order) give to the nine tokens around it (in raster order, 4 = its own).

    Raises:
        ValueError: an argument's shape, dtype or value does not fit; the message names it and what is accepted.
        BackendError: the backend asked for by name cannot serve the call.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; accepted is a floating [B, H, W, C]")
    if min(x.shape[1:]) < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; H, W and C must be at least 1")
    ch, cw = _cell(cell)
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: at least 1 is accepted")
    if eps < 0:
        raise ValueError(f"eps={eps}: it must not be negative")
    scale = x.shape[-1] ** -0.5 if scale is None else scale
    return OPERATOR(x, (ch, cw), iterations, float(scale), float(eps), affinity_grad, backend=backend)


def back_project(
    tokens: Tensor,
    affinity: Tensor,
    *,
    cell: int | tuple[int, int],
    size: tuple[int, int],
    backend: str = "auto",
) -> Tensor:
    """Tokens back to pixels: ``y_p = sum_k A_pk s_k`` over the nine tokens around p (arXiv:2211.11167, eq. 9).

    Args:
        tokens: ``[B, hh, ww, D]``; D is free.
        affinity: ``[B, hh, ww, 9, ch*cw]`` of :func:`super_token`.
        cell: ``(ch, cw)`` or one number, as given there.
        size: ``(H, W)`` of the map; padding beyond it is cut off.
        backend: see :mod:`zoo_kernels.dispatch`.

    Returns:
        ``[B, H, W, D]`` in the dtype of ``tokens``.

    Raises:
        ValueError: an argument's shape, dtype or value does not fit; the message names it and what is accepted.
        BackendError: the backend asked for by name cannot serve the call.
    """
    if tokens.ndim != 4 or not tokens.is_floating_point() or tokens.shape[-1] < 1:
        raise ValueError(
            f"tokens is {tokens.dtype} of shape {tuple(tokens.shape)}; accepted is a floating [B, hh, ww, D]"
        )
    ch, cw = _cell(cell)
    b, hh, ww, _ = tokens.shape
    if affinity.shape != (b, hh, ww, 9, ch * cw) or not affinity.is_floating_point():
        raise ValueError(
            f"affinity is {affinity.dtype} of shape {tuple(affinity.shape)}; for tokens {tuple(tokens.shape)} and "
            f"cell={(ch, cw)} accepted is a floating {(b, hh, ww, 9, ch * cw)}"
        )
    if affinity.device != tokens.device:
        raise ValueError(f"affinity is on {affinity.device}, tokens on {tokens.device}; both must be on one device")
    height, width = size
    if (-(-height // ch), -(-width // cw)) != (hh, ww):
        raise ValueError(
            f"size={(height, width)} makes {-(-height // ch)} x {-(-width // cw)} cells of {ch} x {cw}; tokens has "
            f"{hh} x {ww}"
        )
    return BACK_PROJECT(tokens, affinity, (ch, cw), (height, width), backend=backend)


def _cell(cell: int | tuple[int, int]) -> tuple[int, int]:
    ch, cw = (cell, cell) if isinstance(cell, int) else cell
    if ch < 1 or cw < 1:
        raise ValueError(f"cell={cell}: both sides must be at least 1")
    return ch, cw
