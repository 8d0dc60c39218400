"""Channel attention: DaViT's channel-group attention module, projections included."""

from __future__ import annotations

from torch import Tensor

from zoo_kernels.dispatch import Operator

OPERATOR = Operator("channel_attention", ("reference", "eager", "triton"), autocast=True)

__all__ = ["OPERATOR", "channel_attention"]


def channel_attention(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    *,
    num_heads: int,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention between the channels of each group: y = proj(q A^T) with A = softmax(scale * k^T v) per group.

    ``A`` [d, d] is one matrix an image and group, so the cost is linear in the number of tokens.

    Args:
        x: [B, N, C] tokens.
        qkv_weight: [3C, C], rows packed q | k | v, each [num_heads, d] with d = C / num_heads.
        qkv_bias: [3C] or None.
        proj_weight: [C, C].
        proj_bias: [C] or None.
        num_heads: number of channel groups; divides C.
        scale: of the logits k^T v; d ** -0.5 if None.
        backend: "auto", "reference", "eager" or "triton".

    Returns:
        [B, N, C], the dtype of ``x``.

    Raises:
        ValueError: a shape, dtype, device or head count that does not fit.
        BackendError: ``backend`` was named and cannot serve the call.

    Source: Ding et al., "DaViT: Dual Attention Vision Transformers" (arXiv 2204.03645), eq. 3.
    """
    if x.dim() != 3:
        raise ValueError(f"x has {x.dim()} dimensions, shape {tuple(x.shape)}: accepted is [B, N, C]")
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}: accepted is a floating dtype")
    n, c = x.shape[1:]
    if not isinstance(num_heads, int) or num_heads < 1 or c == 0 or c % num_heads:
        raise ValueError(f"num_heads={num_heads!r}: accepted is an int >= 1 that divides the {c} channels of x")
    if n < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}: accepted is at least one token")
    shapes = {"qkv_weight": (3 * c, c), "qkv_bias": (3 * c,), "proj_weight": (c, c), "proj_bias": (c,)}
    for (name, shape), t in zip(shapes.items(), (qkv_weight, qkv_bias, proj_weight, proj_bias)):
        if t is None and name.endswith("bias"):
            continue
        if t is None or tuple(t.shape) != shape:
            got = None if t is None else tuple(t.shape)
            raise ValueError(f"{name} has shape {got}: accepted is {shape} for x of shape {tuple(x.shape)}")
        if t.device != x.device:
            raise ValueError(f"{name} is on {t.device}: accepted is the device of x, {x.device}")
        if t.dtype != x.dtype and not OPERATOR.autocasts(x):
            raise ValueError(f"{name} has dtype {t.dtype}: accepted is the dtype of x, {x.dtype}, outside autocast")
    if scale is not None and not isinstance(scale, (int, float)):
        raise TypeError(f"scale={scale!r}: accepted is a number, or None for head_dim ** -0.5")
    return OPERATOR(x, qkv_weight, qkv_bias, proj_weight, proj_bias, num_heads=num_heads, scale=scale, backend=backend)
