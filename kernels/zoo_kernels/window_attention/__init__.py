"""Window attention: softmax attention inside the windows of an un-partitioned map, and its cross form."""

from __future__ import annotations

from torch import Tensor

from zoo_kernels.dispatch import Operator

OPERATOR = Operator("window_attention", ("reference", "eager", "triton"), autocast=True)
CROSS = Operator("window_attention", ("reference", "eager", "triton"), "cross", autocast=True)

__all__ = ["CROSS", "OPERATOR", "window_attention", "window_cross_attention"]


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(n, int) or n < least for n in pair):
        raise ValueError(f"{name}={value!r}: accepted is an int or a pair of ints (rows, columns), each >= {least}")
    return pair


def _check_scale(scale: float | None) -> None:
    if scale is not None and not isinstance(scale, (int, float)):
        raise TypeError(f"scale={scale!r}: accepted is a number, or None for head_dim ** -0.5")


def _check_tensor(name: str, t: Tensor | None, shape: tuple[int, ...], like: Tensor, *, same_dtype: bool) -> None:
    if t is None:
        return
    if tuple(t.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(t.shape)}: accepted is {shape}")
    if t.device != like.device:
        raise ValueError(f"{name} is on {t.device}: accepted is the device of the map, {like.device}")
    if same_dtype and t.dtype != like.dtype:
        raise ValueError(f"{name} has dtype {t.dtype}: accepted is the dtype of the map, {like.dtype}")
    if not t.is_floating_point():
        raise ValueError(f"{name} has dtype {t.dtype}: accepted is a floating dtype")


def _check_map(name: str, t: Tensor, num_heads: int, parts: int) -> None:
    if t.dim() != 4:
        raise ValueError(f"{name} has {t.dim()} dimensions, shape {tuple(t.shape)}: accepted is [B, H, W, channels]")
    if not t.is_floating_point():
        raise ValueError(f"{name} has dtype {t.dtype}: accepted is a floating dtype")
    if not isinstance(num_heads, int) or num_heads < 1:
        raise ValueError(f"num_heads={num_heads!r}: accepted is an int >= 1")
    if t.shape[-1] == 0 or t.shape[-1] % (parts * num_heads):
        raise ValueError(
            f"{name} has {t.shape[-1]} channels: accepted is a multiple of {parts} * num_heads = {parts * num_heads}"
        )
    if t.shape[1] < 1 or t.shape[2] < 1:
        raise ValueError(f"{name} has a map of {t.shape[1]} x {t.shape[2]}: accepted is at least one token")


def window_attention(
    qkv: Tensor,
    *,
    num_heads: int,
    window: int | tuple[int, int],
    shift: int | tuple[int, int] = (0, 0),
    bias: Tensor | None = None,
    pad_value: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention inside windows of a channels-last map, partition, cyclic shift and padding included.

    Args:
        qkv: [B, H, W, 3C], the last dimension packed q | k | v, each [num_heads, head_dim]; any H and W >= 1.
        num_heads: divides C.
        window: (rows, columns) of a window, or one int for both; may exceed the map, which is then padded.
        shift: cyclic shift (rows, columns) by which the windows are displaced, 0 <= shift < window; tokens that a
            wrapped window gathers from opposite sides of the map do not attend to each other.
        bias: additive [num_heads, rows*columns, rows*columns] (query, key), or None; float32 is allowed with any map.
        pad_value: [3C], the packed qkv of the tokens that fill the map up to whole windows (below and on the right);
            they are attended to, as in Swin and DaViT. None: padded keys are masked out.
        scale: of the logits; head_dim ** -0.5 if None.
        backend: "auto", "reference", "eager" or "triton".

    Returns:
        [B, H, W, C], the dtype of ``qkv``.

    Raises:
        ValueError: a shape, dtype, window, shift or head count that does not fit.
        BackendError: ``backend`` was named and cannot serve the call.

    Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), eq. 4 and section 3.2.
    """
    _check_map("qkv", qkv, num_heads, 3)
    window = _pair("window", window, 1)
    shift = _pair("shift", shift, 0)
    if shift[0] >= window[0] or shift[1] >= window[1]:
        raise ValueError(f"shift={shift}: accepted is less than window={window} in each direction")
    _check_scale(scale)
    tokens = window[0] * window[1]
    _check_tensor("bias", bias, (num_heads, tokens, tokens), qkv, same_dtype=False)
    _check_tensor("pad_value", pad_value, (qkv.shape[-1],), qkv, same_dtype=False)
    return OPERATOR(
        qkv,
        num_heads=num_heads,
        window=window,
        shift=shift,
        bias=bias,
        pad_value=pad_value,
        scale=scale,
        backend=backend,
    )


def window_cross_attention(
    q: Tensor,
    kv: Tensor,
    *,
    num_heads: int,
    window: int | tuple[int, int],
    kv_window: int | tuple[int, int],
    bias: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Window attention from one map to another of a different resolution, as attention upsampling needs it.

    The window at (i, j) of the query map attends to the window at (i, j) of the key map; both maps are cut into the
    same number of windows. Tokens that fill a map up to whole windows are masked out as keys and dropped as queries.

    Args:
        q: [B, H, W, C] queries, each [num_heads, head_dim].
        kv: [B, Hk, Wk, 2C], the last dimension packed k | v.
        num_heads: divides C.
        window: (rows, columns) of a query window, or one int.
        kv_window: (rows, columns) of a key window, or one int; ceil(Hk / rows) and ceil(Wk / columns) equal those of
            the query map.
        bias: additive [num_heads, query tokens, key tokens] of a window, or None.
        scale: of the logits; head_dim ** -0.5 if None.
        backend: "auto", "reference", "eager" or "triton".

    Returns:
        [B, H, W, C].

    Raises:
        ValueError: a shape, dtype, window or head count that does not fit, or maps cut into different window counts.
        BackendError: ``backend`` was named and cannot serve the call.

    Source: Li et al., "More than Encoder: Introducing Transformer Decoder to Upsample" (arXiv 2106.10637), window
    attention upsample.
    """
    _check_map("q", q, num_heads, 1)
    _check_map("kv", kv, num_heads, 2)
    window = _pair("window", window, 1)
    kv_window = _pair("kv_window", kv_window, 1)
    if kv.shape[0] != q.shape[0] or kv.shape[-1] != 2 * q.shape[-1]:
        raise ValueError(
            f"kv has shape {tuple(kv.shape)}: accepted is [{q.shape[0]}, Hk, Wk, {2 * q.shape[-1]}] for q of shape "
            f"{tuple(q.shape)}"
        )
    if kv.dtype != q.dtype or kv.device != q.device:
        raise ValueError(f"kv is {kv.dtype} on {kv.device}: accepted is that of q, {q.dtype} on {q.device}")
    counts = [-(-n // w) for n, w in zip(q.shape[1:3], window)]
    kv_counts = [-(-n // w) for n, w in zip(kv.shape[1:3], kv_window)]
    if counts != kv_counts:
        raise ValueError(
            f"kv_window={kv_window} cuts the key map into {kv_counts[0]} x {kv_counts[1]} windows: accepted is as many "
            f"as window={window} cuts the query map into, {counts[0]} x {counts[1]}"
        )
    _check_scale(scale)
    _check_tensor("bias", bias, (num_heads, window[0] * window[1], kv_window[0] * kv_window[1]), q, same_dtype=False)
    return CROSS(
        q, kv, num_heads=num_heads, window=window, kv_window=kv_window, bias=bias, scale=scale, backend=backend
    )
