"""What is learned of a batch of samples: a label map, or masks with classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.segmentation.data_sample import SegDataSample, sample_name

#: what masks can be made of, in the order in which it is looked for
MASK_SOURCES = ("panoptic", "instances", "sem_seg")


def semantic_targets(
    samples: Sequence[SegDataSample],
    size: tuple[int, int],
    num_classes: int,
    ignore_index: int,
    device: torch.device | str,
) -> Tensor:
    """Label maps of a batch, padded at the right and bottom with the ignore index.

    Args:
        samples: with ``gt_sem_seg``.
        size: height and width of the batch.
        num_classes: labels are 0 to one less, or ``ignore_index``.
        ignore_index: the label of pixels that do not count.
        device: of the result.

    Returns:
        int64 ``[B, H, W]``.

    Raises:
        ValueError: a sample without labels or with a larger map than the batch, a label that is no class; the message
            names the image (and the labels).
    """
    batch = torch.full((len(samples), *size), ignore_index, dtype=torch.int64, device=device)
    for i, sample in enumerate(samples):
        if "gt_sem_seg" not in sample:
            raise ValueError(f"image {sample_name(sample)} has no gt_sem_seg")
        _put(batch[i], sample.gt_sem_seg, sample)
    wrong = ((batch < 0) | (batch >= num_classes)) & (batch != ignore_index)
    bad = wrong.flatten(1).any(1).tolist()  # one wait for the device
    if any(bad):
        first = bad.index(True)
        values = batch[first][wrong[first]].unique().tolist()
        raise ValueError(
            f"image {sample_name(samples[first])} has the labels {values[:10]}{' ...' if len(values) > 10 else ''}, "
            f"but the model has {num_classes} classes (0 to {num_classes - 1}) and ignores {ignore_index}"
        )
    return batch


def mask_targets(
    samples: Sequence[SegDataSample],
    size: tuple[int, int],
    num_classes: int,
    ignore_index: int,
    device: torch.device | str,
    source: str | None = None,
) -> list[dict[str, Tensor]]:
    """Masks and classes of each image of a batch, padded at the right and bottom with zeros.

    Args:
        samples: with ``gt_panoptic``, ``gt_instances`` or ``gt_sem_seg``.
        size: height and width of the batch.
        num_classes: labels are 0 to one less.
        ignore_index: the label of pixels in ``gt_sem_seg`` that belong to no mask.
        device: of the result.
        source: of :data:`MASK_SOURCES`, what masks are made of; None for the first that a sample has. "panoptic": a
            mask a segment, without crowds. "sem_seg": a mask a class that the image has.

    Returns:
        For each image ``labels`` int64 ``[N]`` and ``masks`` bool ``[N, H, W]``.

    Raises:
        ValueError: an unknown source, a sample without it, masks larger than the batch, a label that is no class.
    """
    if source not in (None, *MASK_SOURCES):
        raise ValueError(f"source={source!r}: accepted are {', '.join(MASK_SOURCES)} and None")
    found = []
    for sample in samples:
        wanted = [source] if source else [s for s in MASK_SOURCES if f"gt_{s}" in sample]
        if not wanted or f"gt_{wanted[0]}" not in sample:
            lacking = " or ".join(f"gt_{s}" for s in wanted or MASK_SOURCES)
            raise ValueError(f"image {sample_name(sample)} has no {lacking}")
        labels, masks = _masks_of(sample, wanted[0], ignore_index)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"image {sample_name(sample)} has labels between {int(labels.min())} and {int(labels.max())}, but the "
                f"model has {num_classes} classes (0 to {num_classes - 1})"
            )
        padded = torch.zeros(len(masks), *size, dtype=torch.bool, device=device)
        _put(padded, masks, sample)
        found.append({"labels": labels.to(device), "masks": padded})
    return found


def _masks_of(sample: SegDataSample, source: str, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Labels ``[N]`` and masks bool ``[N, h, w]``."""
    if source == "instances":
        return sample.gt_instances.labels, sample.gt_instances.masks
    if source == "panoptic":
        panoptic = sample.gt_panoptic
        kept = [s for s in panoptic.segments if not s.get("is_crowd", False)]
        ids = torch.tensor([s["id"] for s in kept], dtype=torch.int32, device=panoptic.ids.device)
        labels = torch.tensor([s["label"] for s in kept], dtype=torch.int64, device=panoptic.ids.device)
        return labels, panoptic.ids[None] == ids[:, None, None]
    values = sample.gt_sem_seg.unique()
    labels = values[values != ignore_index].long()
    return labels, sample.gt_sem_seg[None] == labels[:, None, None]


def _put(batch: Tensor, value: Tensor, sample: SegDataSample) -> None:
    """Write ``[..., h, w]`` into the upper left of ``[..., H, W]``."""
    height, width = value.shape[-2:]
    expected = tuple(sample.get("img_shape", (height, width)))
    if expected != (height, width):
        raise ValueError(f"image {sample_name(sample)} of {expected} has masks of {(height, width)}")
    if height > batch.shape[-2] or width > batch.shape[-1]:
        raise ValueError(
            f"image {sample_name(sample)} has masks of {height} x {width}, larger than the batch's images of "
            f"{batch.shape[-2]} x {batch.shape[-1]}"
        )
    batch[..., :height, :width] = value.to(batch.device)
