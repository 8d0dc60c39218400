"""Panoptic quality: PQ = SQ x RQ, per class, for things, for stuff and for all.

A. Kirillov et al., "Panoptic Segmentation", CVPR 2019 (arXiv:1801.00868), section 4: a predicted and a true segment of
one class match when their IoU is above one half. With TP matched pairs, FP predicted and FN true segments left over,
N = TP + FP / 2 + FN / 2: PQ is the sum of the pairs' IoU over N, SQ their mean IoU and RQ = TP / N.
Void and crowds as in the reference implementation of that paper (panopticapi):

- pixels that are void in the truth are taken out of a predicted segment before its IoU is computed;
- crowds are never matched and never missed;
- a predicted segment that is left over is no mistake if more than half of it is void or the crowd of its class (the
  last one listed, where there are several).
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import mmengine.dist as dist
import numpy as np

from zoo.files import write_file
from zoo.metrics.base import GatheredMetric


def panoptic_counts(
    predicted: np.ndarray,
    predicted_segments: Sequence[Mapping[str, Any]],
    truth: np.ndarray,
    true_segments: Sequence[Mapping[str, Any]],
    num_classes: int,
    *,
    name: str = "the image",
) -> np.ndarray:
    """What an image adds to each class: sum of IoU, TP, FP, FN, float64 ``[K, 4]``.

    Args:
        predicted, truth: numbers of segments ``[H, W]``, 0 for void; any whole numbers.
        predicted_segments, true_segments: dicts with ``id``, ``label`` (class index) and, of the truth, ``is_crowd``.
        num_classes: how many classes.
        name: of the image, for messages.

    Raises:
        ValueError: the sizes differ, a number in a map is not described, a described segment of the prediction has no
            pixel, a number is described twice, or a label is no class.
    """
    if predicted.shape != truth.shape or truth.ndim != 2:
        raise ValueError(
            f"{name}: the prediction has shape {predicted.shape}, the truth {truth.shape}; the same [H, W] is needed"
        )
    found_ids, found = _compact(predicted)
    real_ids, real = _compact(truth)
    found_info = _described(found_ids, predicted_segments, num_classes, f"{name}: the prediction", strict=True)
    real_info = _described(real_ids, true_segments, num_classes, f"{name}: the truth", strict=False)
    pairs = _intersections(real, found, len(real_ids), len(found_ids))
    real_area = np.bincount(real.ravel(), minlength=len(real_ids))
    found_area = np.bincount(found.ravel(), minlength=len(found_ids))
    void = np.zeros(len(found_ids), np.int64)  # of each predicted segment
    for i, j, n in pairs:
        if real_ids[i] == 0:
            void[j] = n
    counts = np.zeros((num_classes, 4))
    matched_real, matched_found = set(), set()
    for i, j, n in pairs:
        true_info, info = real_info[i], found_info[j]
        if true_info is None or info is None or true_info[1] or true_info[0] != info[0]:
            continue
        iou = n / (real_area[i] + found_area[j] - n - void[j])
        if iou > 0.5:
            counts[info[0]] += (iou, 1, 0, 0)
            matched_real.add(i)
            matched_found.add(j)
    position = {int(n): i for i, n in enumerate(real_ids)}
    crowds: dict[int, int | None] = {}  # class -> the last crowd that is listed
    for segment in true_segments:
        at = position.get(int(segment["id"]))
        if segment.get("is_crowd"):
            crowds[int(segment["label"])] = at
        elif at is None or at not in matched_real:
            counts[int(segment["label"])] += (0, 0, 0, 1)
    outside = void.copy()
    for i, j, n in pairs:
        info = found_info[j]
        if info is not None and crowds.get(info[0]) == i:
            outside[j] += n
    for j, info in enumerate(found_info):
        if info is not None and j not in matched_found and outside[j] / found_area[j] <= 0.5:
            counts[info[0]] += (0, 0, 1, 0)
    return counts


def _compact(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that occur, ascending, and the place of each pixel's number among them ``[H, W]``."""
    if ids.size and int(ids.min()) >= 0 and int(ids.max()) < 1 << 24:  # by a table, where sorting would be slower
        counts = np.bincount(ids.ravel())
        present = np.flatnonzero(counts)
        table = np.zeros(len(counts), np.int64)
        table[present] = np.arange(len(present))
        return present, table[ids]
    present, inverse = np.unique(ids, return_inverse=True)
    return present, inverse.reshape(ids.shape)


def _intersections(real: np.ndarray, found: np.ndarray, height: int, width: int) -> list[tuple[int, int, int]]:
    """True segment, predicted segment and common pixels, for each pair that has any."""
    codes = real.ravel().astype(np.int64) * width + found.ravel()
    if height * width <= max(4 * codes.size, 1 << 16):
        counts = np.bincount(codes, minlength=height * width)
        present = np.flatnonzero(counts)
        counts = counts[present]
    else:  # many segments, of which few meet
        present, counts = np.unique(codes, return_counts=True)
    return list(zip((present // width).tolist(), (present % width).tolist(), counts.tolist()))


def _described(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], num_classes: int, name: str, *, strict: bool
) -> list[tuple[int, bool] | None]:
    """Class and crowd of each number in a map, None for void."""
    known: dict[int, tuple[int, bool]] = {}
    for segment in segments:
        number, label = int(segment["id"]), int(segment["label"])
        if number in known or number == 0:
            raise ValueError(f"{name} describes segment {number} twice" if number else f"{name} has a segment of id 0")
        if not 0 <= label < num_classes:
            raise ValueError(f"{name} has segment {number} of class {label}; accepted are 0 to {num_classes - 1}")
        known[number] = (label, bool(segment.get("is_crowd")))
    present = set(ids.tolist())
    strange = sorted(present - set(known) - {0})
    if strange:
        raise ValueError(f"{name} has pixels of the segments {strange[:5]}, which are not described")
    empty = sorted(set(known) - present)
    if strict and empty:
        raise ValueError(f"{name} describes the segments {empty[:5]}, which have no pixel")
    return [known.get(n) for n in ids.tolist()]


@dataclass(frozen=True)
class ClassPQ:
    """One class: PQ, SQ and RQ between 0 and 1 (NaN without any segment), matched, wrong and missed segments."""

    name: str
    thing: bool
    pq: float
    sq: float
    rq: float
    tp: int
    fp: int
    fn: int


@dataclass
class PanopticResult:
    """What an evaluation gave.

    Attributes:
        stats: PQ, SQ, RQ, and each with _things and _stuff; means over the classes that have a segment, true or
            predicted; NaN where there is none.
        classes: a row for each class.
    """

    stats: dict[str, float]
    classes: list[ClassPQ]


def panoptic_result(counts: np.ndarray, classes: Sequence[str], things: Sequence[bool] | None = None) -> PanopticResult:
    """Scores of the summed counts ``[K, 4]`` of :func:`panoptic_counts`.

    Args:
        counts: summed over images.
        classes: K names.
        things: whether each is of things; None leaves out the two partial means.
    """
    if counts.shape != (len(classes), 4) or (things is not None and len(things) != len(classes)):
        raise ValueError(f"counts have shape {counts.shape} for {len(classes)} classes; accepted is [K, 4]")
    iou, tp, fp, fn = counts.T
    size = tp + 0.5 * fp + 0.5 * fn
    there = size > 0
    pq = np.divide(iou, size, out=np.full(len(classes), np.nan), where=there)
    rq = np.divide(tp, size, out=np.full(len(classes), np.nan), where=there)
    sq = np.where(there, np.divide(iou, tp, out=np.zeros(len(classes)), where=tp > 0), np.nan)
    stats: dict[str, float] = {}
    is_thing = np.array(things if things is not None else [True] * len(classes), bool)
    groups = {"": there}
    if things is not None:
        groups |= {"_things": there & is_thing, "_stuff": there & ~is_thing}
    for suffix, chosen in groups.items():
        for name, values in (("PQ", pq), ("SQ", sq), ("RQ", rq)):
            stats[name + suffix] = float(values[chosen].mean()) if chosen.any() else float("nan")
    rows = [
        ClassPQ(n, bool(t), float(p), float(s), float(r), int(a), int(b), int(c))
        for n, t, p, s, r, a, b, c in zip(classes, is_thing, pq, sq, rq, tp, fp, fn)
    ]
    return PanopticResult(stats, rows)


class PanopticQuality(GatheredMetric):
    """PQ, SQ and RQ of predicted segments: ``panoptic/PQ``, ``panoptic/PQ_things`` ... between 0 and 1.

    Compares ``pred_panoptic`` with ``gt_panoptic``, both at the original size. After an evaluation :attr:`result` holds
    the scores of each class.

    Args:
        out_dir: where to write ``per_class.csv``; None: nowhere.
        prefix: of the metric names.
    """

    default_prefix = "panoptic"

    def __init__(self, out_dir: str | os.PathLike | None = None, prefix: str | None = None):
        super().__init__(prefix)
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.result: PanopticResult | None = None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Count the segments of a batch of predicted samples (dicts of ``SegDataSample``'s fields)."""
        meta = self.dataset_meta or {}
        if "classes" not in meta:
            raise ValueError("PanopticQuality needs a dataset whose metainfo has 'classes'")
        for sample in data_samples:
            name = f"{sample.get('img_path', 'a sample')!r}"
            truth, found = sample.get("gt_panoptic"), sample.get("pred_panoptic")
            if truth is None or found is None:
                raise ValueError(f"{name} has no {'gt_panoptic' if truth is None else 'pred_panoptic'} to evaluate")
            counts = panoptic_counts(
                _numbers(found["ids"]),
                found["segments"],
                _numbers(truth["ids"]),
                truth["segments"],
                len(meta["classes"]),
                name=name,
            )
            used = counts.any(1).nonzero()[0]
            self.results.append((sample.get("sample_idx"), used, counts[used]))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        if not results:
            raise ValueError("PanopticQuality has seen no image; there is nothing to evaluate")
        meta = self.dataset_meta or {}
        counts = np.zeros((len(meta["classes"]), 4))
        for _, used, values in results:
            counts[used] += values
        self.result = panoptic_result(counts, list(meta["classes"]), meta.get("things"))
        if self.out_dir is not None and dist.is_main_process():
            write_panoptic_report(self.out_dir, self.result)
        return dict(self.result.stats)


def _numbers(ids: Any) -> np.ndarray:
    return ids.detach().cpu().numpy() if hasattr(ids, "detach") else np.asarray(ids)


def write_panoptic_report(out_dir: Path, result: PanopticResult) -> None:
    """Write the table of classes into a folder."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(ClassPQ)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in result.classes)
    write_file(out_dir / "per_class.csv", text.getvalue())
