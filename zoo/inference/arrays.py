"""Arrays and tensors as RGB uint8 images; what is ambiguous is refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.data.loading import over_white


def split_batch(value: Any) -> list[Any] | None:
    """The images of a batch (four dimensions), or None for a single image."""
    return list(value) if value.ndim == 4 else None


def array_to_rgb(array: np.ndarray, name: str = "the array") -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` of a channels-last array.

    Args:
        array: ``[H, W]`` or ``[H, W, 1]`` grey, ``[H, W, 2]`` grey and alpha, ``[H, W, 3]`` RGB, ``[H, W, 4]`` RGBA; of
            uint8, of uint16 (upper 8 bits are kept), bool, or floats between 0 and 1.
        name: of the image, for messages.

    Raises:
        ValueError: another shape, dtype or range.
    """
    channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 2, 3, 4)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)) or 0 in array.shape:
        hint = "; channels come last in arrays (transpose it, or give a tensor)" if channels_first else ""
        raise ValueError(
            f"{name} has shape {array.shape}{hint}; accepted are [H, W] and [H, W, C] with 1 to 4 channels"
        )
    pixels = _to_uint8(array, name)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    channels = pixels.shape[2]
    if channels in (1, 2):
        pixels = np.concatenate([np.repeat(pixels[:, :, :1], 3, axis=2), pixels[:, :, 1:]], axis=2)
    return over_white(pixels) if pixels.shape[2] == 4 else np.ascontiguousarray(pixels)


def tensor_to_rgb(tensor: Any, name: str = "the tensor") -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` of a channels-first tensor ``[C, H, W]`` (or ``[H, W]``), as :func:`array_to_rgb`.

    Raises:
        ValueError: another shape, dtype or range.
    """
    if tensor.ndim == 3:
        if tensor.shape[0] not in (1, 2, 3, 4):
            hint = "; channels come first in tensors (permute it)" if tensor.shape[2] in (1, 3, 4) else ""
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}{hint}; accepted are [H, W] and [C, H, W] with 1 to 4 channels"
            )
        tensor = tensor.permute(1, 2, 0)
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16
    return array_to_rgb(tensor.numpy(), name)


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # false for NaN
            raise ValueError(
                f"{name} has floats between {low:g} and {high:g}; accepted are 0 to 1 (the model's normalisation is "
                f"applied here), or uint8"
            )
        return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    raise ValueError(f"{name} has dtype {array.dtype}; accepted are uint8, uint16, bool and floats between 0 and 1")
