"""Denoising queries: noised objects that the decoder is asked to restore, in groups that do not see each other.

Contrastive denoising: DINO: DETR with Improved DeNoising Anchor Boxes (arXiv:2203.03605), section 3.3; denoising:
DN-DETR (arXiv:2203.01305), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.detection.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh


class Draws:
    """The random numbers of the noise; a test may replay recorded ones.

    Args:
        device: where they are drawn.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def uniform(self, *size: int) -> Tensor:
        """Numbers in 0 ... 1."""
        return torch.rand(size, device=self.device)

    def integers(self, high: int, *size: int) -> Tensor:
        """Whole numbers from 0 to ``high - 1``."""
        return torch.randint(high, size, device=self.device)


@dataclass
class Denoising:
    """Denoising queries of a batch, and how they lie.

    Args:
        content: ``[B, P, C]``, zero where an image has fewer objects than others.
        boxes: logits of boxes, ``[B, P, 4]``.
        attn_mask: ``[P + Q, P + Q]``, true where a query must not see another.
        groups: number of groups.
        size: queries P in all.
        where: image and place of each query that stands for an object, each ``[N]``.
        labels, clean_boxes: what these shall be restored to, ``[N]`` and ``[N, 4]``.
    """

    content: Tensor
    boxes: Tensor
    attn_mask: Tensor
    groups: int
    size: int
    where: tuple[Tensor, Tensor]
    labels: Tensor
    clean_boxes: Tensor


@dataclass
class Objects:
    """The objects of a batch, in one row.

    Args:
        labels: ``[N]``.
        boxes: ``[N, 4]``.
        image: the image of each, ``[N]``.
        place: its number in that image, ``[N]``.
        most: objects of the image that has most.
    """

    labels: Tensor
    boxes: Tensor
    image: Tensor
    place: Tensor
    most: int


def objects_of(targets: Sequence[Mapping[str, Tensor]], device: torch.device) -> Objects:
    """The objects of all images, image after image."""
    counts = [len(t["labels"]) for t in targets]
    image = torch.repeat_interleave(torch.arange(len(targets)), torch.tensor(counts))
    return Objects(
        torch.cat([t["labels"] for t in targets]).to(device),
        torch.cat([t["boxes"] for t in targets]).to(device),
        image.to(device),
        torch.cat([torch.arange(n) for n in counts]).to(device),
        max(counts, default=0),
    )


def repeated(objects: Objects, times: int) -> tuple[Tensor, Tensor]:
    """Image and place of ``times`` copies of the objects, each in a slot as long as the fullest image needs."""
    slots = objects.most * torch.arange(times, device=objects.place.device)
    return objects.image.repeat(times), (objects.place[None] + slots[:, None]).flatten()


def group_mask(group_size: int, groups: int, queries: int, device: torch.device) -> Tensor:
    """Who must not see whom, ``[P + Q, P + Q]``: groups see themselves and the matching queries, these only themselves.

    Args:
        group_size: denoising queries a group.
        groups: groups.
        queries: matching queries Q, which come last.
    """
    group = torch.arange(group_size * groups + queries, device=device).div(max(1, group_size), rounding_mode="floor")
    denoising = torch.arange(len(group), device=device) < group_size * groups
    other = group[:, None] != group[None]
    return denoising[None] & (other | ~denoising[:, None])


def contrastive_denoising(
    targets: Sequence[Mapping[str, Tensor]],
    label_enc: nn.Embedding,
    num_queries: int,
    num_classes: int,
    dn_number: int = 100,
    label_noise_ratio: float = 0.5,
    box_noise_scale: float = 0.4,
    draws: Draws | None = None,
    always_share: bool = False,
) -> Denoising:
    """Noised objects in pairs: a positive near the object, which shall be restored, a negative further off, which not.

    Args:
        targets: for each image ``labels [N]`` and ``boxes [N, 4]`` (cx, cy, w, h).
        label_enc: content of a class.
        num_queries: matching queries.
        num_classes: classes to draw wrong labels from.
        dn_number: as the authors count: pairs of queries for the image with most objects; below 50, groups.
        label_noise_ratio: twice the probability of a wrong label.
        box_noise_scale: the largest shift of a corner, in half widths and heights, of positives; negatives are shifted
            by one to two times that.
        draws: source of random numbers.
        always_share: ``dn_number`` is shared among the objects of the fullest image below 50 too (detrex).

    Returns:
        The queries; a group is all positives and then all negatives, padded to the image with most objects.
    """
    device = label_enc.weight.device
    draws = draws or Draws(device)
    objects = objects_of(targets, device)
    groups = 2 * dn_number
    if objects.most == 0 or groups < 1:
        groups = 1
    elif groups >= 100 or always_share:
        groups = max(1, groups // (2 * objects.most))
    size = 2 * objects.most * groups
    clean, clean_boxes = objects.labels.repeat(2 * groups), objects.boxes.repeat(2 * groups, 1)
    labels, boxes = clean, clean_boxes
    if label_noise_ratio > 0:
        chosen = (draws.uniform(len(labels)) < 0.5 * label_noise_ratio).nonzero()[:, 0]
        labels = labels.scatter(0, chosen, draws.integers(num_classes, len(chosen)))
    if box_noise_scale > 0:
        sign = draws.integers(2, *boxes.shape).to(boxes.dtype) * 2 - 1
        part = draws.uniform(*boxes.shape).to(boxes.dtype)
        negative = (
            torch.arange(len(boxes), device=device).div(max(1, len(objects.labels)), rounding_mode="floor") % 2 == 1
        )
        part = (part + negative[:, None].to(boxes.dtype)) * sign
        half = (boxes[:, 2:] / 2).repeat(1, 2)
        boxes = xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + part * half * box_noise_scale).clamp(0, 1))

    content = label_enc.weight.new_zeros(len(targets), size, label_enc.embedding_dim)
    logits = boxes.new_zeros(len(targets), size, 4)
    where = repeated(objects, 2 * groups)
    content[where] = label_enc(labels)
    logits[where] = inverse_sigmoid(boxes, 1e-3)
    mask = group_mask(2 * objects.most, groups, num_queries, device)
    return Denoising(content, logits, mask, groups, size, where, clean, clean_boxes)


def denoising(
    targets: Sequence[Mapping[str, Tensor]],
    label_enc: nn.Embedding,
    num_queries: int,
    num_classes: int,
    groups: int = 5,
    label_noise_scale: float = 0.2,
    box_noise_scale: float = 0.4,
    draws: Draws | None = None,
) -> Denoising:
    """Noised objects, in groups of one query an object.

    Args:
        targets: for each image ``labels [N]`` and ``boxes [N, 4]`` (cx, cy, w, h).
        label_enc: content of a class, one channel less than the queries have; that last channel is 1 for these queries.
        num_queries: matching queries.
        num_classes: classes to draw wrong labels from.
        groups: groups.
        label_noise_scale: probability of a wrong label.
        box_noise_scale: the largest shift of a centre in half widths and heights, of a size in widths and heights.
        draws: source of random numbers.

    Source: DN-DETR (arXiv:2203.01305), section 4.
    """
    device = label_enc.weight.device
    draws = draws or Draws(device)
    objects = objects_of(targets, device)
    clean, clean_boxes = objects.labels.repeat(groups), objects.boxes.repeat(groups, 1)
    labels, boxes = clean, clean_boxes
    if label_noise_scale > 0:
        chosen = (draws.uniform(len(labels)) < label_noise_scale).nonzero()[:, 0]
        labels = labels.scatter(0, chosen, draws.integers(num_classes, len(chosen)))
    if box_noise_scale > 0:
        reach = torch.cat([boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
        shift = (draws.uniform(*boxes.shape).to(boxes.dtype) * 2 - 1) * reach
        boxes = (boxes + shift * box_noise_scale).clamp(0, 1)
    size = objects.most * groups
    content = label_enc.weight.new_zeros(len(targets), size, label_enc.embedding_dim + 1)
    logits = boxes.new_zeros(len(targets), size, 4)
    where = repeated(objects, groups)
    content[where] = nn.functional.pad(label_enc(labels), (0, 1), value=1.0)
    logits[where] = inverse_sigmoid(boxes, 1e-3)
    mask = group_mask(objects.most, groups, num_queries, device)
    return Denoising(content, logits, mask, groups, size, where, clean, clean_boxes)
