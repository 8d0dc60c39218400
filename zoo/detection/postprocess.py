"""From a detector's outputs to boxes in pixels with scores and labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.detection.boxes import cxcywh_to_xyxy


def _in_pixels(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes ``[B, N, 4]`` (cx, cy, w, h in 0 ... 1) to corners in pixels of images of ``sizes [B, 2]`` (h, w)."""
    height, width = sizes.unbind(1)
    scale = torch.stack([width, height, width, height], dim=1).to(boxes.dtype)
    return cxcywh_to_xyxy(boxes) * scale[:, None]


def _listed(scores: Tensor, labels: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
    return [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(scores, labels, boxes)]


@torch.no_grad()
def best_of_queries(outputs: Mapping[str, Any], sizes: Tensor) -> list[dict[str, Tensor]]:
    """Each query with its best class, for softmax classifiers whose last class is "no object" (DETR).

    Args:
        outputs: ``pred_logits [B, Q, classes + 1]``, ``pred_boxes [B, Q, 4]``.
        sizes: height and width of each image, ``[B, 2]``.

    Returns:
        For each image ``scores [Q]``, ``labels [Q]`` and ``boxes [Q, 4]`` as corners in pixels, not clipped.
    """
    scores, labels = outputs["pred_logits"].softmax(-1)[..., :-1].max(-1)
    return _listed(scores, labels, _in_pixels(outputs["pred_boxes"], sizes))


def best_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of query and class of logits ``[B, Q, classes]``: scores, labels and queries, each ``[B, K]``."""
    queries, classes = logits.shape[1:]
    scores, pairs = logits.sigmoid().flatten(1).topk(min(count, queries * classes), dim=1)
    return scores, pairs % classes, torch.div(pairs, classes, rounding_mode="floor")


@torch.no_grad()
def best_of_pairs(
    outputs: Mapping[str, Any], sizes: Tensor, count: int = 100, nms_threshold: float | None = None
) -> list[dict[str, Tensor]]:
    """The best pairs of query and class, for sigmoid classifiers.

    Args:
        outputs: ``pred_logits [B, Q, classes]``, ``pred_boxes [B, Q, 4]``.
        sizes: height and width of each image, ``[B, 2]``.
        count: how many pairs at most.
        nms_threshold: drop boxes that overlap a better one more than this, whatever their classes; None keeps all.

    Returns:
        As :func:`best_of_queries`, best first.
    """
    scores, labels, query = best_pairs(outputs["pred_logits"], count)
    boxes = _in_pixels(outputs["pred_boxes"], sizes).gather(1, query[..., None].expand(-1, -1, 4))
    found = _listed(scores, labels, boxes)
    if nms_threshold is None:
        return found
    from torchvision.ops import nms  # slow to import, and only wanted here

    kept = [nms(f["boxes"], f["scores"], nms_threshold) for f in found]
    return [{k: v[i] for k, v in f.items()} for f, i in zip(found, kept)]
