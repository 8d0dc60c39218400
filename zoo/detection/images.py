"""Images of different sizes in one batch: padding at the right and bottom, and a mask that says where it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def pad_images(images: Sequence[Tensor], divisor: int = 1) -> tuple[Tensor, Tensor]:
    """One batch of images of any sizes.

    Args:
        images: each ``[C, H, W]``.
        divisor: the batch's height and width are rounded up to multiples of this.

    Returns:
        ``[B, C, H, W]`` with zeros at the right and bottom, and the mask ``[B, H, W]``, true where it is padding.

    Raises:
        ValueError: no image, or images with different numbers of channels.
    """
    if not images:
        raise ValueError("images is empty: at least one image is needed")
    if len({(i.ndim, i.shape[0]) for i in images}) > 1 or images[0].ndim != 3:
        raise ValueError(f"images have shapes {[tuple(i.shape) for i in images]}: all must be [C, H, W] with one C")
    height, width = (-(-max(i.shape[d] for i in images) // divisor) * divisor for d in (1, 2))
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for i, image in enumerate(images):
        h, w = image.shape[1:]
        batch[i, :, :h, :w] = image
        mask[i, :h, :w] = False
    return batch, mask


def mask_at(mask: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """The padding mask ``[B, H, W]`` at the size of a feature map: ``[B, h, w]``, each pixel that of the nearest."""
    return F.interpolate(mask[None].float(), size=tuple(size)).bool()[0]
