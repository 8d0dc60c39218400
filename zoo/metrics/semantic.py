"""Scores of semantic segmentation: IoU, accuracy and Dice per class and on average, from one matrix of pixel counts.

With n[t, p] pixels of class t that are predicted as p, and pixels of the ignore index left out: IoU of class k is
n[k, k] over all pixels that are k or are predicted as k (Everingham et al., "The Pascal VOC Challenge", IJCV 2010,
section 4.2.4), its accuracy n[k, k] over the pixels that are k, its Dice score 2 n[k, k] over the sum of both numbers
of pixels. mIoU, mAcc and mDice are means over the classes for which the number is defined; aAcc is the share of right
pixels.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import mmengine.dist as dist
import numpy as np
import torch

from zoo.files import write_file
from zoo.metrics.base import GatheredMetric

#: cv2.calcHist counts in float32, which holds whole numbers up to here
_EXACT = 1 << 24
#: with more classes than this, no matrix is kept, only the counts of each class
MAX_MATRIX = 1024


@dataclass(frozen=True)
class PixelCounts:
    """How often each pair of true and predicted class occurs in an image, pairs that do not occur left out.

    Attributes:
        truth, predicted: int32 ``[P]``; ``predicted`` is ``num_classes`` where no class was predicted.
        counts: int64 ``[P]`` pixels.
    """

    truth: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray


def count_pairs(
    predicted: np.ndarray, truth: np.ndarray, num_classes: int, *, ignore_index: int = 255, name: str = "the image"
) -> PixelCounts:
    """Count the pairs of classes in an image.

    8-bit maps take one pass of OpenCV's two-dimensional histogram; larger numbers are counted where both maps agree,
    and pair by pair elsewhere.

    Args:
        predicted, truth: whole numbers ``[H, W]``. ``ignore_index`` in ``truth`` is left out; in ``predicted`` it says
            that no class was predicted, which is never right.
        num_classes: classes are 0 to ``num_classes`` - 1.
        ignore_index: at least ``num_classes``.
        name: of the image, for messages.

    Raises:
        ValueError: the sizes differ, or a number is neither a class nor the ignore index.
    """
    if predicted.shape != truth.shape or truth.ndim != 2:
        raise ValueError(
            f"{name}: the prediction is {' x '.join(map(str, predicted.shape))} pixels, the truth "
            f"{' x '.join(map(str, truth.shape))}; the same height and width are needed"
        )
    if ignore_index < num_classes:
        raise ValueError(f"ignore_index={ignore_index} is one of {num_classes} classes")
    if not truth.size:
        empty = np.zeros(0, np.int32)
        return PixelCounts(empty, empty, np.zeros(0, np.int64))
    if truth.dtype == predicted.dtype == np.uint8:
        found = _pairs_of_bytes(predicted, truth)
    else:
        found = _pairs_of_numbers(predicted, truth)
    counted = found.truth != ignore_index
    t, p, n = found.truth[counted], found.predicted[counted], found.counts[counted]
    for what, values, allowed in (("truth", t, ()), ("prediction", p, (ignore_index,))):
        wrong = values[((values < 0) | (values >= num_classes)) & ~np.isin(values, allowed)]
        if len(wrong):
            shown = ", ".join(map(str, np.unique(wrong)[:10]))
            raise ValueError(
                f"{name}: the {what} has the values {shown}; accepted are 0 to {num_classes - 1} and {ignore_index}"
            )
    return PixelCounts(t.astype(np.int32), np.where(p == ignore_index, num_classes, p).astype(np.int32), n)


def _pairs_of_bytes(predicted: np.ndarray, truth: np.ndarray) -> PixelCounts:
    total = np.zeros((256, 256), np.float64)
    rows = max(1, (_EXACT - 1) // truth.shape[1])
    for start in range(0, len(truth), rows):
        pair = [np.ascontiguousarray(m[start : start + rows]) for m in (truth, predicted)]
        total += cv2.calcHist(pair, [0, 1], None, [256, 256], [0, 256, 0, 256])
    t, p = np.nonzero(total)
    return PixelCounts(t, p, total[t, p].astype(np.int64))


def _pairs_of_numbers(predicted: np.ndarray, truth: np.ndarray) -> PixelCounts:
    t, p = truth.ravel().astype(np.int64), predicted.ravel().astype(np.int64)
    low = min(int(t.min()), int(p.min()))
    width = max(int(t.max()), int(p.max())) - low + 1
    same = t == p
    alike = np.bincount(t[same] - low, minlength=width)
    classes = np.flatnonzero(alike)
    codes, counts = np.unique((t[~same] - low) * width + (p[~same] - low), return_counts=True)
    return PixelCounts(
        np.concatenate([classes, codes // width]) + low,
        np.concatenate([classes, codes % width]) + low,
        np.concatenate([alike[classes], counts]).astype(np.int64),
    )


@dataclass(frozen=True)
class ClassScores:
    """One class: scores between 0 and 1 (NaN where they are not defined) and pixels."""

    name: str
    iou: float
    accuracy: float
    dice: float
    pixels: int
    predicted_pixels: int


@dataclass
class SemanticResult:
    """What an evaluation gave.

    Attributes:
        stats: mIoU, mAcc, aAcc and mDice, between 0 and 1; NaN where there is nothing to measure.
        classes: a row for each class.
        matrix: int64 ``[K, K + 1]`` pixels by true class and predicted one (the last: none); None for more than
            :data:`MAX_MATRIX` classes.
    """

    stats: dict[str, float]
    classes: list[ClassScores]
    matrix: np.ndarray | None = None


class PixelTotals:
    """Sums the counts of images.

    Args:
        num_classes: how many classes there are.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.right, self.true = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
        self.predicted = np.zeros(num_classes + 1, np.int64)
        self.matrix = np.zeros((num_classes, num_classes + 1), np.int64) if num_classes <= MAX_MATRIX else None

    def add(self, pairs: PixelCounts) -> PixelTotals:
        """Add the counts of an image."""
        same = pairs.truth == pairs.predicted
        np.add.at(self.right, pairs.truth[same], pairs.counts[same])
        np.add.at(self.true, pairs.truth, pairs.counts)
        np.add.at(self.predicted, pairs.predicted, pairs.counts)
        if self.matrix is not None:
            self.matrix[pairs.truth, pairs.predicted] += pairs.counts  # each pair occurs once
        return self

    def result(self, classes: Sequence[str] | None = None) -> SemanticResult:
        """The scores of all images so far."""
        names = list(classes or map(str, range(self.num_classes)))
        if len(names) != self.num_classes:
            raise ValueError(f"there are {len(names)} names for {self.num_classes} classes")
        predicted = self.predicted[:-1]
        both = self.true + predicted
        iou = _ratio(self.right, both - self.right)
        accuracy = _ratio(self.right, self.true)
        dice = _ratio(2 * self.right, both)
        rows = [
            ClassScores(n, float(i), float(a), float(d), int(t), int(p))
            for n, i, a, d, t, p in zip(names, iou, accuracy, dice, self.true, predicted)
        ]
        stats = {
            "mIoU": _mean(iou),
            "mAcc": _mean(accuracy),
            "aAcc": float(_ratio(self.right.sum(), self.true.sum())),
            "mDice": _mean(dice),
        }
        return SemanticResult(stats, rows, None if self.matrix is None else self.matrix.copy())


def _ratio(a: Any, b: Any) -> np.ndarray:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)


def _mean(values: np.ndarray) -> float:
    good = values[~np.isnan(values)]
    return float(good.mean()) if good.size else float("nan")


class SemanticSegmentation(GatheredMetric):
    """mIoU, mAcc, aAcc and mDice of predicted label maps: ``semantic/mIoU`` ... between 0 and 1.

    Compares ``pred_sem_seg`` with ``gt_sem_seg``, both at the original size. An image whose pixels are all ignored
    counts for nothing. After an evaluation :attr:`result` holds the scores of each class and the matrix.

    Args:
        ignore_index: of pixels that do not count; None for the data set's, which is 255 where it says nothing.
        out_dir: where to write ``per_class.csv``, ``confusion.json`` and ``confusion.png``; None: nowhere.
        boundary: also ``boundary_F``, the boundary score of :mod:`zoo.metrics.boundary`, per class and averaged.
        boundary_width: distance in which boundaries count as met, as a share of the image's diagonal.
        prefix: of the metric names.
    """

    default_prefix = "semantic"

    def __init__(
        self,
        ignore_index: int | None = None,
        out_dir: str | os.PathLike | None = None,
        boundary: bool = False,
        boundary_width: float = 0.0075,
        prefix: str | None = None,
    ):
        super().__init__(prefix)
        self.ignore_index = ignore_index
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.boundary, self.boundary_width = boundary, boundary_width
        self.result: SemanticResult | None = None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Count the pixels of a batch of predicted samples (dicts of ``SegDataSample``'s fields)."""
        meta = self.dataset_meta or {}
        if "classes" not in meta:
            raise ValueError("SemanticSegmentation needs a dataset whose metainfo has 'classes'")
        count = len(meta["classes"])
        ignore = self.ignore_index if self.ignore_index is not None else int(meta.get("ignore_index") or 255)
        for sample in data_samples:
            name = f"{sample.get('img_path', 'a sample')!r}"
            truth, predicted = sample.get("gt_sem_seg"), sample.get("pred_sem_seg")
            if truth is None or predicted is None:
                missing = "gt_sem_seg" if truth is None else "pred_sem_seg"
                raise ValueError(f"{name} has no {missing} to evaluate")
            t, p = _narrow(truth), _narrow(predicted)
            pairs = count_pairs(p, t, count, ignore_index=ignore, name=name)
            scores = None
            if self.boundary:
                from zoo.metrics.boundary import boundary_counts

                scores = boundary_counts(p, t, count, ignore_index=ignore, width=self.boundary_width)
            self.results.append((sample.get("sample_idx"), pairs, scores))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        if not results:
            raise ValueError("SemanticSegmentation has seen no image; there is nothing to evaluate")
        classes = list((self.dataset_meta or {})["classes"])
        totals = PixelTotals(len(classes))
        for _, pairs, _ in results:
            totals.add(pairs)
        self.result = totals.result(classes)
        if self.boundary:
            from zoo.metrics.boundary import boundary_scores

            self.result.stats["boundary_F"] = _mean(boundary_scores([b for _, _, b in results]))
        if self.out_dir is not None and dist.is_main_process():
            write_semantic_report(self.out_dir, self.result)
        return dict(self.result.stats)


def _narrow(labels: Any) -> np.ndarray:
    """A label map as uint8 where its numbers allow it (the fast path), else as it is."""
    array = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if array.dtype == np.uint8 or not array.size:
        return array.astype(np.uint8)
    return array.astype(np.uint8) if int(array.min()) >= 0 and int(array.max()) < 256 else array


def write_semantic_report(out_dir: Path, result: SemanticResult) -> None:
    """Write the table of classes, the matrix and its picture into a folder."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(ClassScores)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in result.classes)
    write_file(out_dir / "per_class.csv", text.getvalue())
    if result.matrix is None:
        return
    from zoo.viz.confusion import save_confusion

    names = [row.name for row in result.classes]
    missed = result.matrix[:, -1].any()  # a column for pixels without a prediction, where there are such
    matrix = np.pad(result.matrix, ((0, 1), (0, 0))) if missed else result.matrix[:, :-1]
    names = [*names, "(none)"] if missed else names
    write_file(out_dir / "confusion.json", json.dumps({"classes": names, "matrix": matrix.tolist()}))
    save_confusion(matrix, names, out_dir / "confusion.png")
