"""Sizes that an image has on its way through a network, and the way back from the network's maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class ImageSize(NamedTuple):
    """(height, width) of one image: of the padded batch, of the image in it, and of the original."""

    padded: tuple[int, int]
    image: tuple[int, int]
    original: tuple[int, int]


def restore_map(maps: Tensor, size: ImageSize) -> Tensor:
    """A network's maps of one image at the original resolution.

    Bilinear to the padded size, cut to the image, bilinear to the original size (half-pixel centres).

    Args:
        maps: float ``[K, h, w]``.
        size: the image's.

    Returns:
        ``[K, H, W]`` with H, W of the original.
    """
    x = maps[None]
    if x.shape[-2:] != size.padded:
        x = F.interpolate(x, size=size.padded, mode="bilinear", align_corners=False)
    x = x[..., : size.image[0], : size.image[1]]
    if size.original != size.image:
        x = F.interpolate(x, size=size.original, mode="bilinear", align_corners=False)
    return x[0]


def restore_labels(logits: Tensor, size: ImageSize, chunk: int = 16) -> Tensor:
    """The class with the largest logit at each pixel of the original image.

    Classes are enlarged ``chunk`` at a time, so that memory grows with the image and not with the number of classes.

    Args:
        logits: ``[K, h, w]``.
        size: the image's.
        chunk: classes at a time.

    Returns:
        int64 ``[H, W]``; of equal logits the first.
    """
    best, labels = None, None
    for first in range(0, logits.shape[0], chunk):
        value, index = restore_map(logits[first : first + chunk], size).max(0)
        if best is None or labels is None:
            best, labels = value, index
            continue
        higher = value > best
        best = torch.where(higher, value, best)
        labels = torch.where(higher, index + first, labels)
    if labels is None:
        raise ValueError(f"logits have shape {tuple(logits.shape)}: at least one class is needed")
    return labels


def semantic_postprocess(outputs: dict[str, Tensor], sizes: Sequence[ImageSize]) -> list[dict[str, Tensor]]:
    """``logits [B, K, h, w]`` of a semantic network to ``sem_seg [H, W]`` of each original image."""
    return [{"sem_seg": restore_labels(x, size)} for x, size in zip(outputs["logits"], sizes)]
