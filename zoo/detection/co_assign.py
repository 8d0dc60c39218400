"""Which anchor or proposal answers for which object: by overlap, by ATSS, and sampling of what a head learns from.

Faster R-CNN (arXiv:1506.01497), section 3.1.2; Bridging the Gap Between Anchor-based and Anchor-free Detection via
Adaptive Training Sample Selection (arXiv:1912.02424), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

#: what is no object, and what is neither an object nor background
BACKGROUND, NEITHER = -1, -2

Permutation = Callable[[int], Tensor]


def assign_by_overlap(
    boxes: Tensor, objects: Tensor, positive: float, negative: float, least: float | None = None
) -> Tensor:
    """The object that each box overlaps most.

    Args:
        boxes: corners ``[N, 4]``.
        objects: corners ``[G, 4]``.
        positive: overlap (IoU) from which a box answers for an object.
        negative: overlap below which it is background.
        least: an object's best boxes answer for it from this overlap on, even where another object overlaps them more;
            None for never.

    Returns:
        ``[N]``: the object's index, ``BACKGROUND``, or ``NEITHER`` between the two overlaps.
    """
    found = torch.full((len(boxes),), NEITHER, device=boxes.device)
    if not len(objects) or not len(boxes):
        return torch.full_like(found, BACKGROUND)
    overlaps = box_iou(objects, boxes)  # [G, N]
    best, index = overlaps.max(dim=0)
    found[best < negative] = BACKGROUND
    found = torch.where(best >= positive, index, found)
    if least is not None:
        most = overlaps.amax(dim=1, keepdim=True)
        favoured = (overlaps == most) & (most >= least)
        number = torch.arange(len(objects), device=boxes.device)[:, None]
        last = torch.where(favoured, number, BACKGROUND).amax(dim=0)
        found = torch.where(last >= 0, last, found)
    return found


def assign_atss(anchors: Tensor, counts: Sequence[int], objects: Tensor, nearest: int = 9) -> Tensor:
    """Anchors near an object's centre that overlap it more than such anchors usually do.

    Args:
        anchors: corners ``[N, 4]``, level after level.
        counts: anchors of each level.
        objects: corners ``[G, 4]``.
        nearest: anchors of each level that are candidates for an object.

    Returns:
        ``[N]``: the object's index or ``BACKGROUND``. Candidates answer for an object if their overlap is at least the
        mean and one standard deviation of all its candidates and their centre is inside it; of several objects, for
        that with the largest overlap.
    """
    found = torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    if not len(objects) or not len(anchors):
        return found
    overlaps = box_iou(anchors, objects)  # [N, G]
    centres, middles = ((b[:, :2] + b[:, 2:]) / 2 for b in (anchors, objects))
    distances = (centres[:, None] - middles[None]).square().sum(-1).sqrt()
    candidates, first = [], 0
    for count in counts:
        level = distances[first : first + count]
        candidates.append(level.topk(min(nearest, count), dim=0, largest=False).indices + first)
        first += count
    chosen = torch.cat(candidates)  # [K, G]
    near = overlaps.gather(0, chosen)
    # One candidate alone has no deviation: nothing is above it then.
    good = near >= near.mean(0) + near.std(0)
    centre = centres[chosen]  # [K, G, 2]
    good &= torch.cat([centre - objects[:, :2], objects[:, 2:] - centre], dim=-1).amin(-1) > 0.01
    scores = torch.full_like(overlaps, -1.0).scatter(0, chosen, torch.where(good, near, -1.0))
    best, index = scores.max(dim=1)
    return torch.where(best >= 0, index, found)


def sample(assigned: Tensor, number: int, share: float, permutation: Permutation) -> tuple[Tensor, Tensor]:
    """Positives and negatives to learn from.

    Args:
        assigned: ``[N]`` as of :func:`assign_by_overlap`.
        number: both together at most.
        share: of it, positives at most.
        permutation: a permutation of so many numbers.

    Returns:
        Indices of the positives and of the negatives, each ascending; negatives fill what positives leave.
    """
    positives = some((assigned >= 0).nonzero()[:, 0], int(number * share), permutation)
    negatives = some((assigned == BACKGROUND).nonzero()[:, 0], number - len(positives), permutation)
    return positives, negatives


def some(indices: Tensor, count: int, permutation: Permutation) -> Tensor:
    """At most ``count`` of the indices, drawn by the permutation, ascending."""
    if len(indices) <= count:
        return indices
    return indices[permutation(len(indices))[:count].to(indices.device)].sort().values
