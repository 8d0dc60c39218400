"""From scores and boxes to detections, with suppression of what overlaps: of the auxiliary heads, and soft.

Soft-NMS: Improving Object Detection With One Line of Code (arXiv:1704.04503), eq. 4 (linear).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from zoo.detection.postprocess import best_of_pairs


def best_of_classes(
    boxes: Tensor, scores: Tensor, factors: Tensor | None, threshold: float, overlap: float, count: int
) -> dict[str, Tensor]:
    """Suppress boxes that overlap a better one of the same class.

    Args:
        boxes: corners ``[N, classes or 1, 4]``.
        scores: ``[N, classes]``.
        factors: scores are multiplied by these after the threshold, ``[N]``.
        threshold: least score.
        overlap: overlap (IoU) from which the worse box goes.
        count: boxes that are kept at most.

    Returns:
        ``scores``, ``labels``, ``boxes``, best first.
    """
    row, label = (scores > threshold).nonzero().unbind(1)
    score = scores[row, label]
    score = score if factors is None else score * factors[row]
    box = boxes.expand(-1, scores.shape[1], 4)[row, label]
    kept = batched_nms(box, score, label, overlap)[:count]
    return {"scores": score[kept], "labels": label[kept], "boxes": box[kept]}


def soft_nms(boxes: Tensor, scores: Tensor, threshold: float, least: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Lower the scores of boxes by how much they overlap better ones.

    Args:
        boxes: corners ``[N, 4]``.
        scores: ``[N]``.
        threshold: an overlap (IoU) from this on multiplies the score by what is left, 1 - overlap.
        least: boxes whose score is or falls below are dropped, but for the best one.

    Returns:
        Indices and lowered scores, best first.
    """
    overlaps, left = box_iou(boxes, boxes).cpu(), scores.detach().float().cpu().clone()
    order, final = [], []
    for _ in range(len(boxes)):
        score, best = left.max(0)
        if score == -1:
            break
        order.append(int(best))
        final.append(float(score))
        left[best] = -1
        near = (overlaps[best] >= threshold) & (left >= 0)
        left = torch.where(near, left * (1 - overlaps[best]), left)
        left[left < least] = -1
    return torch.tensor(order, dtype=torch.int64, device=boxes.device), torch.tensor(final, device=boxes.device)


@torch.no_grad()
def best_of_pairs_clipped(
    outputs: Mapping[str, Any],
    sizes: Tensor,
    count: int = 300,
    soft_threshold: float | None = None,
    candidates: int | None = None,
) -> list[dict[str, Tensor]]:
    """The best pairs of query and class, boxes clipped to the image; with soft suppression in each class.

    Args:
        outputs: ``pred_logits [B, Q, classes]``, ``pred_boxes [B, Q, 4]``.
        sizes: height and width of each image, ``[B, 2]``.
        count: pairs that are kept at most.
        soft_threshold: overlap of :func:`soft_nms`; None for no suppression.
        candidates: pairs before the suppression; as many as queries unless given.

    Returns:
        For each image ``scores``, ``labels`` and ``boxes`` as corners in pixels, best first.
    """
    first = count if soft_threshold is None else candidates or outputs["pred_logits"].shape[1]
    found = []
    for f, size in zip(best_of_pairs(outputs, sizes, first), sizes.tolist()):
        f["boxes"] = clip_boxes_to_image(f["boxes"], tuple(size))
        if soft_threshold is not None and len(f["boxes"]):
            # Classes are moved apart, so that they do not overlap.
            apart = f["boxes"] + (f["labels"] * (f["boxes"].max() + 1)).to(f["boxes"])[:, None]
            kept, scores = soft_nms(apart, f["scores"], soft_threshold)
            f = {"scores": scores, "labels": f["labels"][kept], "boxes": f["boxes"][kept]}
        found.append({k: v[:count] for k, v in f.items()})
    return found
