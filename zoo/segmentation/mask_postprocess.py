"""From classified masks to semantic, instance and panoptic results at the original resolution.

Semantic and panoptic: MaskFormer (arXiv:2107.06278), section 3.4. Instances: Mask2Former (arXiv:2112.01527), section
4.1: a query may be found with several classes, and its score is that of the class times the mean of its mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.segmentation.geometry import ImageSize, restore_labels, restore_map

TASKS = ("sem_seg", "instances", "panoptic")
#: masks that are enlarged at a time, so that memory does not grow with the number of queries
CHUNK = 16


def mask_postprocess(
    outputs: Mapping[str, Tensor],
    sizes: Sequence[ImageSize],
    tasks: Sequence[str] = TASKS,
    thing_classes: Sequence[int] | None = None,
    topk: int = 100,
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> list[dict[str, Any]]:
    """Results of a batch.

    Args:
        outputs: ``class_logits [B, Q, classes + 1]`` and ``mask_logits [B, Q, h, w]``.
        sizes: of each image.
        tasks: of "sem_seg", "instances" and "panoptic".
        thing_classes: classes whose objects are told apart; all without it. Only they give instances; panoptic
            segments of another class are joined.
        topk: pairs of a query and a class that can become instances.
        object_threshold: panoptic: queries with a lower class score are left out.
        overlap_threshold: panoptic: a mask of which less than this share is left by the others is left out.

    Returns:
        For each image, of what ``tasks`` names: ``sem_seg`` int64 ``[H, W]``; ``instances``: ``labels [N]``,
        ``scores [N]``, ``masks`` bool ``[N, H, W]``, none empty; ``panoptic``: ``ids`` int32 ``[H, W]`` (0: nothing)
        and ``segments``, a dict with ``id``, ``label``, ``is_thing`` and ``score`` for each.

    Raises:
        ValueError: an unknown task, a class of things that there is not.
    """
    unknown = [t for t in tasks if t not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"tasks={tuple(tasks)}: accepted are {', '.join(TASKS)}")
    count = outputs["class_logits"].shape[-1] - 1
    things = list(range(count)) if thing_classes is None else sorted(set(thing_classes))
    if things and not 0 <= things[0] <= things[-1] < count:
        raise ValueError(f"thing_classes={things}: the network has the classes 0 to {count - 1}")
    found = []
    for classes, masks, size in zip(outputs["class_logits"].softmax(-1), outputs["mask_logits"], sizes):
        result: dict[str, Any] = {}
        if "sem_seg" in tasks:
            result["sem_seg"] = semantic_map(classes, masks, size)
        if "instances" in tasks:
            result["instances"] = instances(classes, masks, size, things, topk)
        if "panoptic" in tasks:
            result["panoptic"] = panoptic(classes, masks, size, things, object_threshold, overlap_threshold)
        found.append(result)
    return found


def semantic_map(classes: Tensor, masks: Tensor, size: ImageSize) -> Tensor:
    """The class of each pixel.

    Args:
        classes: probabilities ``[Q, K + 1]``.
        masks: logits ``[Q, h, w]``.
        size: the image's.

    Returns:
        int64 ``[H, W]``. Masks are enlarged to the padded image, the sum over masks to the original.
    """
    whole = ImageSize(size.padded, size.image, size.image)
    scores: Any = 0.0
    for first in range(0, len(masks), CHUNK):
        part = restore_map(masks[first : first + CHUNK], whole).sigmoid()
        scores = scores + torch.einsum("qk,qhw->khw", classes[first : first + CHUNK, :-1], part)
    return restore_labels(scores, ImageSize(size.image, size.image, size.original))


def instances(
    classes: Tensor, masks: Tensor, size: ImageSize, things: Sequence[int], topk: int = 100
) -> dict[str, Tensor]:
    """The pairs of a query and a class of thing with the largest probabilities; see :func:`mask_postprocess`."""
    device = classes.device
    things_ = torch.as_tensor(things, dtype=torch.int64, device=device)
    scores = classes[:, things_]  # [Q, things]
    best, places = scores.flatten().topk(min(topk, scores.numel()))
    queries, labels = places // max(1, len(things)), things_[places % max(1, len(things))]
    used, slots = queries.unique(return_inverse=True)
    whole = torch.zeros(len(used), *size.original, dtype=torch.bool, device=device)
    quality = torch.zeros(len(used), device=device)
    for first in range(0, len(used), CHUNK):
        part = restore_map(masks[used[first : first + CHUNK]], size)
        inside = part > 0
        whole[first : first + CHUNK] = inside
        area = inside.flatten(1).sum(1)
        quality[first : first + CHUNK] = (part.sigmoid() * inside).flatten(1).sum(1) / (area + 1e-6)
    kept = whole.flatten(1).any(1)[slots] if len(used) else torch.zeros(0, dtype=torch.bool, device=device)
    return {
        "labels": labels[kept],
        "scores": (best * quality[slots])[kept],
        "masks": whole[slots[kept]],
    }


def panoptic(
    classes: Tensor,
    masks: Tensor,
    size: ImageSize,
    things: Sequence[int],
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> dict[str, Any]:
    """A partition of the image: each pixel goes to the mask with the largest product of class and mask probability,
    if that mask holds it; see :func:`mask_postprocess`."""
    device = classes.device
    scores, labels = classes.max(-1)
    kept = ((labels != classes.shape[-1] - 1) & (scores > object_threshold)).nonzero()[:, 0]
    ids = torch.zeros(size.original, dtype=torch.int32, device=device)
    if not len(kept):
        return {"ids": ids, "segments": []}
    scores, labels = scores[kept], labels[kept]
    best = torch.full(size.original, -1.0, device=device)
    owner = torch.zeros(size.original, dtype=torch.int64, device=device)
    holds = torch.zeros(size.original, dtype=torch.bool, device=device)  # the owner's mask has the pixel
    areas = torch.zeros(len(kept), dtype=torch.int64, device=device)
    for first in range(0, len(kept), CHUNK):
        part = restore_map(masks[kept[first : first + CHUNK]], size).sigmoid()
        areas[first : first + CHUNK] = (part >= 0.5).flatten(1).sum(1)
        value, index = (part * scores[first : first + CHUNK, None, None]).max(0)
        own = part.gather(0, index[None])[0] >= 0.5
        higher = value > best
        best = torch.where(higher, value, best)
        owner = torch.where(higher, index + first, owner)
        holds = torch.where(higher, own, holds)
    won = owner.flatten().bincount(minlength=len(kept))
    held = owner[holds].bincount(minlength=len(kept))
    whole = (held > 0) & (areas > 0) & (won.double() / areas.clamp(min=1) >= overlap_threshold)
    segments: list[dict[str, Any]] = []
    numbers = torch.zeros(len(kept), dtype=torch.int32)  # id of each query's segment
    joined: dict[int, dict[str, Any]] = {}
    for k, (good, label, score) in enumerate(zip(whole.tolist(), labels.tolist(), scores.tolist())):
        if not good:
            continue
        if label in joined:
            segment = joined[label]
            segment["score"] = max(segment["score"], score)
        else:
            segment = {"id": len(segments) + 1, "label": label, "is_thing": label in things, "score": score}
            segments.append(segment)
            if label not in things:
                joined[label] = segment
        numbers[k] = segment["id"]
    ids = torch.where(holds, numbers.to(device)[owner], ids)
    return {"ids": ids, "segments": segments}
