"""COCO's average precision and recall of boxes, through faster-coco-eval.

Protocol: https://cocodataset.org/#detection-eval. faster-coco-eval (Apache-2.0) computes what pycocotools computes.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import mmengine.dist as dist
import numpy as np
from mmengine.evaluator import BaseMetric

from zoo.files import write_file

#: Names of the protocol's twelve numbers.
STATS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AR_small", "AR_medium",
         "AR_large")  # fmt: skip


@dataclass(frozen=True)
class ClassAP:
    """One class: AP over all thresholds, at 0.5 and at 0.75, recall with 100 boxes an image (-1 without objects), how
    many objects there are and how many boxes were predicted."""

    name: str
    category_id: int
    ap: float
    ap50: float
    ap75: float
    ar100: float
    objects: int
    predictions: int


@dataclass
class CocoResult:
    """What an evaluation gave.

    Attributes:
        stats: the twelve numbers by the names in :data:`STATS`; -1 where there is nothing to measure.
        classes: a row for each class.
        precision: float ``[T, R, K]`` over IoU thresholds, 101 recalls and classes, all areas, 100 boxes an image; -1
            for classes without objects.
        thresholds: IoU thresholds ``[T]``.
        masks: the same of masks, where boxes and masks were evaluated together.
    """

    stats: dict[str, float]
    classes: list[ClassAP]
    precision: np.ndarray = field(repr=False)
    thresholds: np.ndarray = field(repr=False)
    masks: CocoResult | None = field(default=None, repr=False)

    def all_stats(self) -> dict[str, float]:
        """The numbers of boxes, and those of masks with ``mask_`` before their names."""
        return {**self.stats, **{f"mask_{k}": v for k, v in (self.masks.stats if self.masks else {}).items()}}


def evaluate_boxes(truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> CocoResult:
    """Evaluate predictions by COCO's protocol.

    Args:
        truth: the content of an annotations file: ``images``, ``annotations`` and ``categories``.
        predictions: the content of a results file: ``image_id``, ``category_id``, ``bbox`` (x, y, w, h) and ``score``.

    Raises:
        ValueError: a prediction is of an unknown image or category, or is not four finite numbers and a finite score.
    """
    check_predictions(truth, predictions)
    return run_protocol(truth, predictions, "bbox")


def run_protocol(truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], iou_type: str) -> CocoResult:
    """The numbers of checked predictions; ``iou_type`` is "bbox" or "segm"."""
    from faster_coco_eval import COCO, COCOeval_faster

    reference = COCO(dict(truth))
    if not predictions:
        found = COCO({"images": list(truth["images"]), "annotations": [], "categories": list(truth["categories"])})
    else:
        found = reference.loadRes([dict(p) for p in predictions])
    run = COCOeval_faster(reference, found, iouType=iou_type, print_function=lambda *_: None)
    run.evaluate()
    run.accumulate()
    run.summarize()
    stats = dict(zip(STATS, (float(v) for v in run.stats[: len(STATS)])))
    precision, recall = run.eval["precision"], run.eval["recall"]  # [T, R, K, A, M], [T, K, A, M]
    thresholds = np.asarray(run.params.iouThrs)
    return CocoResult(
        stats, _per_class(truth, predictions, run.params.catIds, precision, recall, thresholds),
        np.array(precision[..., 0, -1]), thresholds,
    )  # fmt: skip


def check_predictions(truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what would be evaluated wrongly or not at all.

    Raises:
        ValueError: see :func:`evaluate_boxes`; the message has the number of the prediction.
    """
    if not isinstance(predictions, Sequence):
        raise ValueError("predictions are no list; a COCO results file holds a list of dicts")
    images = {i["id"] for i in truth["images"]}
    categories = {c["id"] for c in truth["categories"]}
    for number, p in enumerate(predictions):
        if not isinstance(p, Mapping) or not {"image_id", "category_id", "bbox", "score"} <= set(p):
            raise ValueError(f"prediction {number} is {p!r}; image_id, category_id, bbox and score are needed")
        if p["image_id"] not in images:
            raise ValueError(f"prediction {number} is of image {p['image_id']!r}, which the annotations do not list")
        if p["category_id"] not in categories:
            raise ValueError(f"prediction {number} is of category {p['category_id']!r}, which there is not")
        if len(p["bbox"]) != 4 or not np.isfinite([*p["bbox"], p["score"]]).all():
            raise ValueError(
                f"prediction {number} has bbox {p['bbox']} and score {p['score']}: finite numbers are needed"
            )


def _per_class(
    truth: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    ids: Sequence[int],
    precision: np.ndarray,
    recall: np.ndarray,
    thresholds: np.ndarray,
) -> list[ClassAP]:
    names = {c["id"]: str(c.get("name", c["id"])) for c in truth["categories"]}
    objects, boxes = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for a in truth["annotations"]:
        objects[a["category_id"]] += not a.get("iscrowd", 0)
    for p in predictions:
        boxes[p["category_id"]] += 1
    at = {t: int(np.abs(thresholds - t).argmin()) for t in (0.5, 0.75)}

    def mean(values: np.ndarray) -> float:
        good = values[values > -1]
        return float(good.mean()) if good.size else -1.0

    return [
        ClassAP(
            names[c],
            int(c),
            mean(precision[:, :, k, 0, -1]),
            mean(precision[at[0.5], :, k, 0, -1]),
            mean(precision[at[0.75], :, k, 0, -1]),
            mean(recall[:, k, 0, -1]),
            objects[c],
            boxes[c],
        )
        for k, c in enumerate(ids)
    ]


def format_classes(rows: Sequence[ClassAP]) -> str:
    """The per-class table as text, one line a class."""
    width = max([5, *(len(r.name) for r in rows)])
    lines = [f"{'class':<{width}}      AP    AP50    AP75   AR100  objects  predictions"]
    for r in rows:
        values = "  ".join(f"{v:6.4f}" for v in (r.ap, r.ap50, r.ap75, r.ar100))
        lines.append(f"{r.name:<{width}}  {values}  {r.objects:7d}  {r.predictions:11d}")
    return "\n".join(lines)


def confusion_counts(
    truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], *, score: float = 0.3, iou: float = 0.5
) -> np.ndarray:
    """How often objects of each class are found as which class, ``[K + 1, K + 1]`` int64.

    Predictions from ``score`` on are matched with objects of any class, best overlap first, from ``iou`` on. Rows are
    true classes in the order of ``categories`` and "no object" (wrong boxes), columns found classes and "not found".
    """
    order = {c["id"]: k for k, c in enumerate(truth["categories"])}
    counts = np.zeros((len(order) + 1,) * 2, np.int64)
    objects: dict[Any, list] = {i["id"]: [] for i in truth["images"]}
    ignored: dict[Any, list] = {i["id"]: [] for i in truth["images"]}
    for a in truth["annotations"]:
        (ignored if a.get("iscrowd", 0) else objects)[a["image_id"]].append((a["bbox"], order[a["category_id"]]))
    found: dict[Any, list] = {i["id"]: [] for i in truth["images"]}
    for p in predictions:
        if p["score"] >= score:
            found[p["image_id"]].append((p["bbox"], order[p["category_id"]]))
    for image in objects:
        real, seen = objects[image], found[image]
        overlap = box_overlaps([b for b, _ in real], [b for b, _ in seen])
        real_left, seen_left = set(range(len(real))), set(range(len(seen)))
        for flat in np.argsort(-overlap, axis=None, kind="stable"):
            i, j = divmod(int(flat), max(1, len(seen)))
            if overlap[i, j] < iou:
                break
            if i in real_left and j in seen_left:
                counts[real[i][1], seen[j][1]] += 1
                real_left.discard(i)
                seen_left.discard(j)
        for i in real_left:
            counts[real[i][1], -1] += 1
        if seen_left and ignored[image]:  # boxes in a crowd are neither right nor wrong
            rest = sorted(seen_left)
            inside = box_overlaps([b for b, _ in ignored[image]], [seen[j][0] for j in rest], of_second=True)
            seen_left -= {j for j, hit in zip(rest, inside.max(0) >= iou) if hit}
        for j in seen_left:
            counts[-1, seen[j][1]] += 1
    return counts


def box_overlaps(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], of_second: bool = False) -> np.ndarray:
    """IoU ``[N, M]`` of boxes x, y, w, h; with ``of_second`` the intersection over the area of ``b``."""
    x, y = np.array(a, np.float64).reshape(-1, 1, 4), np.array(b, np.float64).reshape(1, -1, 4)
    low = np.maximum(x[..., :2], y[..., :2])
    high = np.minimum(x[..., :2] + x[..., 2:], y[..., :2] + y[..., 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    whole = y[..., 2:].prod(-1) if of_second else x[..., 2:].prod(-1) + y[..., 2:].prod(-1) - inner
    return np.divide(inner, whole, out=np.zeros_like(inner), where=whole > 0)


class CocoBoxes(BaseMetric):
    """COCO's box AP and AR of a detector's predictions: ``coco/AP``, ``coco/AP50`` ... between 0 and 1.

    Ground truth comes with the samples, so that any detection dataset can be evaluated. After an evaluation
    :attr:`result` holds everything.

    Args:
        out_dir: where to write ``predictions.json`` (which the COCO server accepts), ``per_class.csv``,
            ``confusion.json`` and the plots ``precision_recall.png`` and ``confusion.png``; None: nowhere.
        max_per_image: best predictions of an image that are kept.
        confusion_score: score from which predictions count in the confusion table.
        prefix: of the metric names.
    """

    default_prefix = "coco"

    def __init__(
        self,
        out_dir: str | os.PathLike | None = None,
        max_per_image: int = 300,
        confusion_score: float = 0.3,
        prefix: str | None = None,
    ):
        super().__init__(collect_device="cpu", prefix=prefix)
        if max_per_image < 1:
            raise ValueError(f"max_per_image={max_per_image}: accepted are 1 and above")
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.max_per_image, self.confusion_score = max_per_image, confusion_score
        self.result: CocoResult | None = None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep truth and predictions of a batch of predicted samples (dicts of ``DetDataSample``'s fields)."""
        for sample in data_samples:
            found = sample["pred_instances"]
            boxes, scores, labels = (found[k].detach().float().cpu().numpy() for k in ("boxes", "scores", "labels"))
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
                raise ValueError(
                    f"the predictions for {sample.get('img_path')!r} are not finite; the model has diverged"
                )
            n = self.max_per_image
            height, width = sample["ori_shape"]
            self.results.append(
                (
                    int(sample["img_id"]),
                    {"id": int(sample["img_id"]), "height": int(height), "width": int(width)},
                    sample["ground_truth"],
                    (boxes[:n], scores[:n], labels[:n].astype(int), *self.more_of(sample, n)),
                )
            )

    def more_of(self, sample: Mapping[str, Any], count: int) -> tuple[Any, ...]:
        """What else a subclass keeps of the best ``count`` predictions of a sample."""
        return ()

    def evaluate(self, size: int) -> dict[str, float]:
        """Metrics of all processes together; an image that a sampler gave twice counts once."""
        parts = dist.all_gather_object(list(self.results))
        self.results.clear()
        once: dict[int, Any] = {}
        for part in parts:
            for number, *rest in part:
                once.setdefault(number, rest)
        metrics = self.compute_metrics([(k, *v) for k, v in sorted(once.items())])
        return {f"{self.prefix}/{name}": value for name, value in metrics.items()}

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        if not results:
            raise ValueError("CocoBoxes has seen no image; there is nothing to evaluate")
        meta = self.dataset_meta or {}
        if "classes" not in meta:
            raise ValueError("CocoBoxes needs a dataset whose metainfo has 'classes'")
        ids = list(meta.get("category_ids") or range(len(meta["classes"])))
        truth = coco_truth([(image, gt) for _, image, gt, _ in results], list(meta["classes"]), ids)
        predictions = [p for number, _, _, found in results for p in coco_predictions(number, found, ids)]
        return self.evaluate_all(truth, predictions)

    def evaluate_all(self, truth: dict[str, Any], predictions: list[dict[str, Any]]) -> dict[str, float]:
        """The metrics, and the report where one is wanted."""
        self.result = evaluate_boxes(truth, predictions)
        if self.out_dir is not None and dist.is_main_process():
            write_report(self.out_dir, truth, predictions, self.result, score=self.confusion_score)
        return dict(self.result.stats)


def coco_truth(
    images: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], classes: Sequence[str], ids: Sequence[int]
) -> dict[str, Any]:
    """Annotations as COCO has them from (image, ground truth of the dataset) pairs."""
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, gt in images:
        listed.append(dict(image))
        masks = [{"segmentation": s} for s in gt["segmentations"]] if "segmentations" in gt else [{}] * len(gt["boxes"])
        for box, label, area, crowd, mask in zip(gt["boxes"], gt["labels"], gt["areas"], gt["crowd"], masks):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(ids[label]),
                    "bbox": [float(v) for v in box],
                    "area": float(area),
                    "iscrowd": int(crowd),
                    **mask,
                }
            )
    categories = [{"id": int(i), "name": str(n)} for i, n in zip(ids, classes)]
    return {"images": listed, "annotations": annotations, "categories": categories}


def coco_predictions(image_id: int, found: Sequence[Any], ids: Sequence[int]) -> list[dict[str, Any]]:
    """Entries of a results file from boxes ``[N, 4]`` (corners), scores ``[N]``, labels ``[N]`` and, where there is a
    fourth, masks as compressed run lengths."""
    entries = []
    for (x0, y0, x1, y1), score, label in zip(*(np.asarray(v, np.float64).tolist() for v in found[:3])):
        box = [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)]
        entries.append({"image_id": image_id, "category_id": int(ids[int(label)]), "bbox": box, "score": score})
    for entry, segmentation in zip(entries, found[3] if len(found) > 3 else ()):
        entry["segmentation"] = segmentation
    return entries


def write_report(
    out_dir: Path,
    truth: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    result: CocoResult,
    *,
    score: float = 0.3,
) -> None:
    """Write predictions, tables and plots of an evaluation of boxes into a folder."""
    from zoo.viz.confusion import save_confusion

    write_file(out_dir / "predictions.json", json.dumps(list(predictions)))
    write_classes(out_dir, result)
    names = [*(str(c.get("name", c["id"])) for c in truth["categories"]), "(none)"]
    counts = confusion_counts(truth, predictions, score=score)
    write_file(out_dir / "confusion.json", json.dumps({"classes": names, "matrix": counts.tolist(), "score": score}))
    save_confusion(counts, names, out_dir / "confusion.png")


def write_classes(out_dir: Path, result: CocoResult, suffix: str = "") -> None:
    """Write the table ``per_class.csv`` and the curves ``precision_recall.png`` (with ``suffix`` in their names)."""
    from zoo.viz.detection import save_precision_recall

    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(ClassAP)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in result.classes)
    write_file(out_dir / f"per_class{suffix}.csv", text.getvalue())
    save_precision_recall(result, out_dir / f"precision_recall{suffix}.png")
