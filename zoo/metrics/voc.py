"""Pascal VOC's average precision of boxes at an overlap of 0.5.

M. Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010, section 4.2; since 2010 the area under
the whole precision-recall curve, before at eleven recalls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.metrics.coco import CocoBoxes, box_overlaps, coco_predictions, coco_truth


def average_precision(hits: np.ndarray, objects: int, eleven_points: bool = False) -> float:
    """AP of predictions in the order of falling scores.

    Args:
        hits: bool ``[N]``, whether each finds an object that no better one found.
        objects: how many objects there are.
        eleven_points: the mean of the best precision from recalls 0, 0.1, ... 1 on (VOC 2007).

    Returns:
        Between 0 and 1; nan without objects.
    """
    if objects == 0:
        return float("nan")
    right = np.cumsum(hits)
    recall, precision = right / objects, right / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision from each recall on
    if eleven_points:
        return float(np.mean([best[recall >= r - 1e-12].max(initial=0.0) for r in np.linspace(0, 1, 11)]))
    steps = np.diff(np.concatenate([[0.0], recall]))
    return float((best * steps).sum())


def voc_ap(
    truth: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    *,
    iou: float = 0.5,
    eleven_points: bool = False,
) -> dict[int, float]:
    """AP of each category that has objects; arguments as :func:`zoo.metrics.coco.evaluate_boxes`.

    An object with ``iscrowd`` (VOC's difficult ones) counts neither as an object nor as a wrong box. Of several boxes
    on one object the best scored is right and the others are wrong; a box belongs to the object that it overlaps most.
    """
    found: dict[int, float] = {}
    for category in (c["id"] for c in truth["categories"]):
        real: dict[Any, list[Any]] = {}
        for a in truth["annotations"]:
            if a["category_id"] == category:
                real.setdefault(a["image_id"], []).append(a)
        objects = sum(not a.get("iscrowd", 0) for listed in real.values() for a in listed)
        if not objects:
            continue
        ranked = sorted((p for p in predictions if p["category_id"] == category), key=lambda p: -p["score"])
        taken: set[tuple[Any, int]] = set()
        hits = []
        for p in ranked:
            listed = real.get(p["image_id"], [])
            overlap = box_overlaps([a["bbox"] for a in listed], [p["bbox"]])[:, 0]
            best = int(overlap.argmax()) if len(listed) else -1
            if best < 0 or overlap[best] < iou:
                hits.append(False)
            elif not listed[best].get("iscrowd", 0):
                hits.append((p["image_id"], best) not in taken)
                taken.add((p["image_id"], best))
        found[category] = average_precision(np.array(hits, bool), objects, eleven_points)
    return found


class VocBoxes(CocoBoxes):
    """VOC's mean AP at an overlap of 0.5: ``voc/AP50``, between 0 and 1; :attr:`per_class` by class name.

    Args:
        eleven_points: as in VOC 2007.
        max_per_image: best predictions of an image that are kept.
        prefix: of the metric name.
    """

    default_prefix = "voc"

    def __init__(self, eleven_points: bool = False, max_per_image: int = 300, prefix: str | None = None):
        super().__init__(max_per_image=max_per_image, prefix=prefix)
        self.eleven_points = eleven_points
        self.per_class: dict[str, float] = {}

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        if not results:
            raise ValueError("VocBoxes has seen no image; there is nothing to evaluate")
        classes = list((self.dataset_meta or {})["classes"])
        ids = list(range(len(classes)))
        truth = coco_truth([(image, gt) for _, image, gt, _ in results], classes, ids)
        predictions = [p for number, _, _, found in results for p in coco_predictions(number, found, ids)]
        found = voc_ap(truth, predictions, eleven_points=self.eleven_points)
        self.per_class = {classes[i]: ap for i, ap in found.items()}
        return {"AP50": float(np.mean(list(found.values()))) if found else -1.0}
